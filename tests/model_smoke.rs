mod common;
use chunkwise::nn::*;
use chunkwise::*;
use common::*;
#[test]
fn step_is_forward() {
    for isa in Isa::available() {
        for output_mode in [OutputMode::LastTimestep, OutputMode::All, OutputMode::Mean] {
            let config = ModelConfig {
                hidden_size: 50,
                num_heads: 3,
                num_layers: 2,
                chunk_size: 20,
                output_mode,
                ..ModelConfig::new(7)
            };
            let mut flat = vec![0.0; config.parameters_len()];
            init(&config, 1, &mut flat).unwrap();
            let mut blocks = vec![BlockWeights::default(); 2];
            let model =
                Model::new(config, Weights::from_flat(&config, &flat, &mut blocks).unwrap(), Some(isa), 1)
                    .unwrap();
            for (batch, len) in [(1, 1), (3, 5), (2, 64), (1, 150), (70, 3)] {
                let x = normals(1, batch * len * 7);
                let mut y = vec![f32::NAN; model.output_len(batch, len)];
                model
                    .forward(
                        batch,
                        len,
                        &x,
                        &mut y,
                        &mut vec![f32::NAN; model.scratch_len(batch, len).unwrap()],
                    )
                    .unwrap();
                let mut state = vec![0.0; model.state_len(batch).unwrap()];
                let mut out = vec![f32::NAN; batch * 50];
                let mut scratch = vec![f32::NAN; model.step_scratch_len(batch).unwrap()];
                for t in 0..len {
                    let xt: Vec<f32> =
                        (0..batch).flat_map(|b| x[(b * len + t) * 7..][..7].to_vec()).collect();
                    model.step(batch, &xt, &mut state, &mut out, &mut scratch).unwrap();
                }
                let want: Vec<f64> = if output_mode == OutputMode::All {
                    (0..batch)
                        .flat_map(|b| y[((b + 1) * len - 1) * 50..][..50].to_vec())
                        .map(f64::from)
                        .collect()
                } else {
                    y.iter().map(|x| f64::from(*x)).collect()
                };
                let e = norm_error(&out, &want);
                assert!(e < 3e-6, "{isa} {output_mode:?} {batch} {len} {e}");
            }
        }
    }
}
