//! Attention against the f64 oracle, on every instruction set of the machine.
mod common;
use chunkwise::*;
use common::*;

#[test]
fn smoke() {
    for isa in Isa::available() {
        for (key, value) in [(1, 1), (3, 5), (16, 16), (17, 33), (64, 64), (40, 130)] {
            for len in [0, 1, 5, 16, 17, 100] {
                for normaliser in normalisers(&[1, 5, 16, 20, 64]) {
                    for map in [FeatureMap::Elu, FeatureMap::RELU, FeatureMap::Identity] {
                        let mut config = Config::new(2, len, 3, key, value, normaliser);
                        config.isa = Some(isa);
                        config.feature_map = map;
                        let a = Attention::new(config).unwrap();
                        let mut q = normals(1, 2 * len * 3 * key);
                        let mut k = normals(2, 2 * len * 3 * key);
                        let v = normals(3, 2 * len * 3 * value);
                        if map == FeatureMap::Identity {
                            for x in q.iter_mut().chain(&mut k) {
                                *x = x.abs()
                            }
                        }
                        let mut o = vec![f32::NAN; 2 * len * 3 * value];
                        let mut scratch = vec![f32::NAN; a.scratch_len()];
                        a.forward(Forward {
                            q: &q,
                            k: &k,
                            v: &v,
                            state: State::Zero,
                            o: &mut o,
                            scratch: &mut scratch,
                        })
                        .unwrap();
                        let want = oracle(&config, &q, &k, &v);
                        let e = norm_error(&o, &want);
                        assert!(e < 2e-6, "{isa} {key} {value} {len} {normaliser:?} {map:?}: {e}");
                        if len == 0 {
                            continue;
                        }
                        let mut o2 = vec![f32::NAN; 2 * len * 3 * value];
                        let one = Attention::new(Config {
                            len: 1,
                            q_strides: Strides { batch: len * 3 * key, ..config.q_strides },
                            ..config
                        })
                        .unwrap();
                        let mut state = vec![0.0; one.state_len()];
                        for t in 0..len {
                            one.decode(DecodeStep {
                                q: &q[t * 3 * key..],
                                k: &k[t * 3 * key..],
                                v: &v[t * 3 * value..],
                                state: &mut state,
                                o: &mut o2[t * 3 * value..],
                                scratch: &mut scratch,
                            })
                            .unwrap();
                        }
                        let e = norm_error(&o2, &want);
                        assert!(e < 2e-6, "{isa} {key} {value} {len} {normaliser:?} {map:?}: decode {e}");
                    }
                }
            }
        }
    }
}
