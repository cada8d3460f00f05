//! Invalid arguments return the error that describes them and never panic. `Attention::new` returns the
//! errors that follow from the configuration; `forward` and `decode` return the others. A refused call writes
//! nothing: outputs, states and scratch keep their bits. The tests also make the nearest call that is
//! accepted.

use chunkwise::{
    Attention, Config, Error, FeatureMap, Heads, Isa, Normaliser, Result, Rule, Shape, State, Strides,
    Tensors,
};

use crate::common::*;

/// B 2, T 3, H 2, K 4, V 5.
fn config(normaliser: Normaliser) -> Config {
    Config::new(Rule::linear(normaliser), Shape::new(2, 3, 2, 4, 5)).isa(Isa::best())
}

const PER_CHUNK: Normaliser = Normaliser::per_chunk(7);

/// The error of a configuration.
#[track_caller]
fn refused(config: Config) -> Error {
    Attention::new(config).err().unwrap_or_else(|| panic!("accepted: {config:?}"))
}

#[track_caller]
fn accepted(config: Config) -> Attention {
    Attention::new(config).unwrap_or_else(|error| panic!("{error}: {config:?}"))
}

/// The ways to pass a state to a forward, and a decode.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Zero,
    Initial,
    Final,
    InitialFinal,
    Carried,
    Decode,
}

const CALLS: [Call; 6] =
    [Call::Zero, Call::Initial, Call::Final, Call::InitialFinal, Call::Carried, Call::Decode];

impl Call {
    fn reads_state(self) -> bool {
        !matches!(self, Call::Zero | Call::Final)
    }

    fn writes_state(self) -> bool {
        !matches!(self, Call::Zero | Call::Initial)
    }
}

/// The arguments of a call.
#[derive(Clone)]
struct Buffers {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// The state before the first token.
    initial: Vec<f32>,
    /// The slice for the last state, unless the call updates the first one.
    last: Vec<f32>,
    o: Vec<f32>,
    scratch: Vec<f32>,
}

impl Buffers {
    /// Slices of exactly the lengths that the call needs.
    fn new(attention: &Attention, call: Call) -> Self {
        let decode = call == Call::Decode;
        let config = *attention.config();
        // A decode has one token, and the same strides.
        let case = Case::new(if decode { with(config, |c| c.shape.len = 1) } else { config }, 1);
        let scratch_len = if decode { attention.decode_scratch_len() } else { attention.scratch_len() };
        Self {
            initial: vec![0.0; attention.state_len()],
            last: vec![SENTINEL; attention.state_len()],
            o: case.output(),
            scratch: vec![SENTINEL; scratch_len],
            q: case.q,
            k: case.k,
            v: case.v,
        }
    }

    fn all(&self) -> [&[f32]; 7] {
        [&self.q, &self.k, &self.v, &self.initial, &self.last, &self.o, &self.scratch]
    }

    fn run(&mut self, attention: &Attention, call: Call) -> Result<()> {
        let Self { q, k, v, initial, last, o, scratch } = self;
        let tensors = Tensors::new(&q[..], &k[..], &v[..], &mut o[..]);
        let state = match call {
            Call::Zero => State::Zero,
            Call::Initial => State::Initial(initial),
            Call::Final => State::Final(last),
            Call::InitialFinal => State::InitialFinal(initial, last),
            Call::Carried => State::Carried(initial),
            Call::Decode => return attention.decode(tensors, initial, scratch),
        };
        attention.forward(tensors, state, scratch)
    }

    /// The error of a call, after a check that the call has written nothing.
    #[track_caller]
    fn refused(mut self, attention: &Attention, call: Call) -> Error {
        let before = self.clone();
        let error = self.run(attention, call).err().unwrap_or_else(|| panic!("accepted: {call:?}"));
        for (before, after) in before.all().iter().zip(self.all()) {
            assert!(untouched(before, after), "{call:?}: written before it was refused: {error}");
        }
        error
    }

    #[track_caller]
    fn accepted(mut self, attention: &Attention, call: Call) -> Self {
        self.run(attention, call).unwrap_or_else(|error| panic!("{call:?}: {error}"));
        self
    }
}

#[test]
fn zero_sizes() {
    let config = config(PER_CHUNK);
    for (what, config) in [
        ("heads", with(config, |c| c.shape.heads = 0)),
        ("key", with(config, |c| c.shape.key = 0)),
        ("value", with(config, |c| c.shape.value = 0)),
        ("threads", config.threads(0)),
        ("chunk", with(config, |c| c.rule.normaliser = Normaliser::per_chunk(0))),
    ] {
        assert_eq!(refused(config), Error::Zero { what });
    }
    accepted(with(config, |c| c.rule.normaliser = Normaliser::per_chunk(1)).threads(1));
}

#[test]
fn chunks() {
    let config = config(PER_CHUNK);
    let of = |chunk| with(config, |c| c.rule.normaliser = Normaliser::per_chunk(chunk));
    accepted(of(1 << 24));
    for chunk in [(1 << 24) + 1, usize::MAX] {
        assert_eq!(
            refused(of(chunk)),
            Error::TooMany { what: "tokens of a chunk", most: 1 << 24, got: chunk }
        );
    }
}

#[test]
fn epsilons() {
    let config = config(PER_CHUNK);
    let global = |eps| with(config, |c| c.rule.normaliser = Normaliser::Global { eps });
    let per_chunk = |eps| with(config, |c| c.rule.normaliser = Normaliser::PerChunk { chunk: 7, eps });
    let relu = |eps| with(config, |c| c.rule.feature_map = FeatureMap::Relu { eps });
    for eps in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e-6, -f32::from_bits(1)] {
        assert_eq!(refused(global(eps)), Error::NotFinite { what: "the normaliser's eps" });
        assert_eq!(refused(per_chunk(eps)), Error::NotFinite { what: "the normaliser's eps" });
        assert_eq!(refused(relu(eps)), Error::NotFinite { what: "the feature map's eps" });
    }
    for eps in [0.0, -0.0, f32::MIN_POSITIVE, 1.0, f32::MAX] {
        accepted(global(eps));
        accepted(relu(eps));
    }
    accepted(per_chunk(f32::MAX));
}

#[test]
fn scales() {
    let scaled = |scale, normaliser| with(config(normaliser), |c| c.rule.scale = scale);
    for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for normaliser in normalisers(&[7]) {
            assert_eq!(refused(scaled(scale, normaliser)), Error::NotFinite { what: "scale" });
        }
    }
    for scale in [0.0, -1.0, f32::MAX, f32::MIN] {
        accepted(scaled(scale, Normaliser::None));
        accepted(scaled(scale, Normaliser::Global { eps: 0.0 }));
    }
    // Before the first chunk has ended, the output of the past is 0 times scale / eps, which must be finite.
    let of = |scale, eps| scaled(scale, Normaliser::PerChunk { chunk: 7, eps });
    for (scale, eps) in [(1.0, 0.0), (0.0, 0.0), (-1.0, f32::from_bits(1)), (1e31, 1e-8), (f32::MAX, 0.5)] {
        let what = "scale / eps of the per-chunk normaliser";
        assert_eq!(refused(of(scale, eps)), Error::NotFinite { what });
    }
    for (scale, eps) in [(0.0, f32::from_bits(1)), (1.0, 1e-38), (1e30, 1e-8), (f32::MAX, 1.0)] {
        accepted(of(scale, eps));
    }
}

/// A configuration of contiguous tensors on an instruction set.
fn sized(isa: Isa, normaliser: Normaliser, [batch, len, heads, key, value]: [usize; 5]) -> Config {
    Config::new(Rule::linear(normaliser), Shape::new(batch, len, heads, key, value)).isa(isa)
}

#[test]
fn sizes_that_overflow() {
    // Every size that is counted exceeds the address space; none of them may panic or wrap, in any build.
    const MAX: usize = usize::MAX;
    const HALF: usize = 1 << (usize::BITS / 2);
    for n in [MAX, MAX - 1, MAX / 2 + 1, MAX / 2, MAX / 4 + 1, MAX / 4, MAX / 8 + 1, MAX / 16 + 1] {
        for (isa, normaliser) in
            Isa::available().flat_map(|isa| normalisers(&[7]).into_iter().map(move |n| (isa, n)))
        {
            for sizes in [
                [n, 1, 1, 1, 1],
                [1, n, 1, 2, 1],
                [1, n, 1, 1, 2],
                [1, 1, n, 1, 1],
                [1, 1, 1, n, 1],
                [1, 1, 1, 1, n],
                [n, n, n, n, n],
                [0, 0, n, 1, 1],
                [0, 0, 1, n, 1],
                [0, 0, 1, 1, n],
                [0, 0, 1, n, n],
                [1, 1, 1, HALF, HALF],
                [HALF, 1, HALF, 1, 1],
                [HALF, HALF, 1, HALF, 1],
            ] {
                let error = refused(sized(isa, normaliser, sizes));
                assert!(matches!(error, Error::Overflow { .. }), "{error:?}: {isa}, {sizes:?}");
            }
        }
    }
    // The error names the first thing that is too large: tensors come before the state.
    let config = config(Normaliser::None);
    for (key, value, what) in [(MAX, 1, "q"), (1, MAX, "v"), (HALF, HALF, "the state")] {
        let config = sized(Isa::best(), Normaliser::None, [1, 1, 1, key, value]);
        assert_eq!(refused(config), Error::Overflow { what });
    }
    for far in [MAX, MAX / 2 + 1, MAX / 8 + 1] {
        for far in [
            Strides { batch: far, ..config.shape.q_strides },
            Strides { token: far, ..config.shape.q_strides },
            Strides { head: far, ..config.shape.q_strides },
            Strides { batch: far, token: far, head: far },
        ] {
            for (what, config) in [
                ("q", with(config, |c| c.shape.q_strides = far)),
                ("k", with(config, |c| c.shape.k_strides = far)),
                ("v", with(config, |c| c.shape.v_strides = far)),
                ("o", with(config, |c| c.shape.o_strides = far)),
            ] {
                assert_eq!(refused(config), Error::Overflow { what }, "{far:?}");
            }
        }
    }
}

#[test]
fn sizes_that_almost_overflow() {
    // Each configuration is accepted or refused without a panic. The lengths that are returned have not
    // wrapped: they are at least as large as S.
    let mut seen = [0; 2];
    for (isa, normaliser) in
        Isa::available().flat_map(|isa| normalisers(&[7]).into_iter().map(move |n| (isa, n)))
    {
        for bits in usize::BITS - 22..usize::BITS {
            for n in [(1 << bits) - 1, 1 << bits, (1 << bits) + 1] {
                for sizes in [
                    [1, 1, 1, 1, n],
                    [1, 1, 1, n, 1],
                    [1, 1, n, 1, 1],
                    [n, 1, 1, 1, 1],
                    [0, 9, 1, 1, n],
                    [2, 0, 3, 1, n / 8],
                    [1, 1, 1, n >> 8, 255],
                    [1, 1, 255, 1, n >> 8],
                ] {
                    for threads in [1, usize::MAX] {
                        let config = sized(isa, normaliser, sizes).threads(threads);
                        match Attention::new(config) {
                            Ok(attention) => {
                                seen[0] += 1;
                                let needs = [attention.scratch_len(), attention.decode_scratch_len()];
                                let Shape { batch, heads, key, value, .. } = config.shape;
                                assert!(needs[0] >= key * value && needs[1] >= key, "{config:?}");
                                assert!(attention.state_len() >= batch * heads * key * value, "{config:?}");
                            }
                            Err(error) => {
                                seen[1] += 1;
                                assert!(matches!(error, Error::Overflow { .. }), "{error:?}: {config:?}");
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(seen.iter().all(|seen| *seen > 0));
}

#[test]
fn bounds_that_overflow() {
    // A bound can't return an error, so it saturates at a length that no memory can have.
    const MAX: usize = usize::MAX;
    for [heads, key, value] in [[MAX, 1, 1], [1, MAX, 1], [1, 1, MAX], [MAX; 3], [1, 1, MAX / 32 + 1]] {
        let bound = Attention::scratch_bound(heads, key, value);
        assert!(bound > isize::MAX as usize / 4, "{bound}: {heads}, {key}, {value}");
    }
}

#[test]
fn large_numbers_that_are_no_sizes() {
    // Strides along a dimension of size one, lengths of a batch of zero sequences, and threads take no
    // memory.
    let far = Strides { batch: usize::MAX, token: usize::MAX, head: usize::MAX };
    for normaliser in normalisers(&[7]) {
        let of = |batch, len, heads| {
            let shape = Shape::new(batch, len, heads, 4, 5).with_inputs(far, far, far).with_output(far);
            with(config(normaliser), |c| c.shape = shape)
        };
        let one = accepted(of(1, 1, 1));
        for call in CALLS {
            Buffers::new(&one, call).accepted(&one, call);
        }
        let none = accepted(of(0, usize::MAX, 2));
        Buffers::new(&none, Call::Carried).accepted(&none, Call::Carried);
        let threads = accepted(config(normaliser).threads(usize::MAX));
        for call in CALLS {
            Buffers::new(&threads, call).accepted(&threads, call);
        }
    }
    // With T = 0 a decode still has one token, so that the strides that `new` did not check are checked then.
    let config = with(config(Normaliser::None), |c| c.shape.len = 0);
    let none = accepted(with(config, |c| c.shape.q_strides = far));
    let buffers = Buffers::new(&accepted(config), Call::Decode);
    assert_eq!(buffers.refused(&none, Call::Decode), Error::Overflow { what: "q" });
    let none = accepted(written(config, Strides { batch: 5, token: 0, head: 5 }));
    let buffers = Buffers::new(&accepted(config), Call::Decode);
    assert_eq!(buffers.refused(&none, Call::Decode), Error::Overlap { what: "o" });
}

/// A snapshot of another configuration is refused by its length or by its count of tokens.
#[cfg(feature = "std")]
#[test]
fn snapshots_of_another_stream() {
    let stream = |normaliser| chunkwise::Stream::new(config(normaliser)).expect("a legal configuration");
    let mut seven = stream(PER_CHUNK);
    let case = Case::new(config(PER_CHUNK), 1);
    seven.forward(3, case.tensors(0, &mut case.output())).expect("legal arguments");
    let before = seven.snapshot();
    let want = accepted(config(PER_CHUNK)).state_len();
    let none = stream(Normaliser::None).snapshot();
    let got = accepted(config(Normaliser::None)).state_len();
    assert_eq!(seven.restore(&none), Err(Error::Length { what: "the snapshot", want, got }));
    // Three tokens in a chunk of two.
    let mut two = stream(Normaliser::per_chunk(2));
    assert_eq!(two.restore(&before), Err(Error::BadState));
    assert_eq!(two.snapshot(), stream(Normaliser::per_chunk(2)).snapshot());
    assert_eq!(seven.snapshot(), before);
    // Tensors that are too short, and so many tokens that rows of o overlap.
    let mut o = case.output();
    o.pop();
    let need = o.len() + 1;
    let refused = seven.forward(3, case.tensors(0, &mut o));
    assert_eq!(refused, Err(Error::TooShort { what: "o", need, got: need - 1 }));
    let overlap =
        with(config(PER_CHUNK), |c| c.shape = Shape::new(2, 3, 2, 4, 5).with_output(Strides::bhtd(3, 2, 5)));
    let mut rows = chunkwise::Stream::new(overlap).expect("a legal configuration");
    assert_eq!(rows.forward(4, case.tensors(0, &mut case.output())), Err(Error::Overlap { what: "o" }));
    assert_eq!(seven.snapshot(), before);
}

/// A configuration with other strides of o.
fn written(config: Config, o: Strides) -> Config {
    with(config, |c| c.shape = c.shape.with_output(o))
}

#[test]
fn rows_of_o_that_overlap() {
    let config = config(Normaliser::None);
    let [head, token, batch] = [5, 2 * 5, 3 * 2 * 5];
    for (batch, token, head) in [
        (batch, token, head - 1),
        (batch, token - 1, head),
        (batch - 1, token, head),
        (batch, token, 0),
        (batch, 0, head),
        (0, token, head),
        (0, 0, 0),
        (batch, 5, 3 * 5 - 1), // tokens nested inside heads
        (5, 5, 5),
        (5, 2 * 5, 2 * 3 * 5 - 1), // sequences nested inside tokens, and these inside heads
    ] {
        let o_strides = Strides { batch, token, head };
        assert_eq!(refused(written(config, o_strides)), Error::Overlap { what: "o" }, "{o_strides:?}");
    }
    for (batch, token, head) in
        [(batch, token, head), (batch, head, 3 * 5), (2 * 15, 5, 15), (5, 2 * 2 * 5, 2 * 5)]
    {
        accepted(written(config, Strides { batch, token, head }));
    }
    // Along a dimension of size one there are no rows that could overlap.
    let one = |change: fn(&mut Shape)| with(config, |c| change(&mut c.shape));
    accepted(written(one(|shape| shape.batch = 1), Strides { batch: 0, token, head }));
    accepted(written(one(|shape| shape.len = 1), Strides { batch, token: 0, head }));
    let one_head = one(|shape| (shape.heads, shape.groups) = (1, Heads::equal(1)));
    accepted(written(one_head, Strides { batch, token, head: 0 }));
    // Inputs may overlap.
    accepted(with(config, |c| c.shape.q_strides = Strides { batch: 0, token: 0, head: 0 }));
}

#[test]
fn slices_that_are_too_short() {
    for normaliser in normalisers(&[7]) {
        for (order, gaps) in [(0, [0; 3]), (1, [0; 3]), (4, [3, 1, 2])] {
            let config = config(normaliser);
            let config = with_layouts(config, [(order, gaps); 4]);
            let attention = accepted(config);
            for call in CALLS {
                let buffers = Buffers::new(&attention, call);
                let short = |cut: fn(&mut Buffers) -> &mut Vec<f32>| {
                    let mut buffers = buffers.clone();
                    cut(&mut buffers).pop();
                    let got = cut(&mut buffers).len();
                    (buffers.refused(&attention, call), got)
                };
                for (what, (error, got)) in [
                    ("q", short(|buffers| &mut buffers.q)),
                    ("k", short(|buffers| &mut buffers.k)),
                    ("v", short(|buffers| &mut buffers.v)),
                    ("o", short(|buffers| &mut buffers.o)),
                    ("scratch", short(|buffers| &mut buffers.scratch)),
                ] {
                    assert_eq!(error, Error::TooShort { what, need: got + 1, got }, "{call:?}");
                }
                // Slices of exactly the required lengths are accepted, and longer ones.
                let exact = buffers.clone().accepted(&attention, call);
                let mut longer = buffers.clone();
                let Buffers { q, k, v, o, scratch, .. } = &mut longer;
                [q, k, v, o, scratch].into_iter().for_each(|x| x.extend([SENTINEL; 40]));
                let longer = longer.accepted(&attention, call);
                let (o, rest) = longer.o.split_at(exact.o.len());
                assert!(untouched(o, &exact.o) && untouched(rest, &[SENTINEL; 40]), "{call:?}");
            }
            let mut nothing = Buffers::new(&attention, Call::Zero);
            nothing.q.clear();
            let need = reach(&config, config.shape.q_strides, config.shape.key);
            assert_eq!(nothing.refused(&attention, Call::Zero), Error::TooShort { what: "q", need, got: 0 });
        }
    }
}

#[test]
fn states_of_another_length() {
    for normaliser in normalisers(&[7]) {
        let attention = accepted(config(normaliser));
        let want = attention.state_len();
        assert_eq!(
            want,
            match normaliser {
                Normaliser::None => 2 * 2 * 4 * 5,
                Normaliser::Global { .. } => 2 * 2 * (4 * 5 + 4),
                _ => 2 * 2 * (2 * (4 * 5 + 4) + 1),
            }
        );
        for got in [want - 1, want + 1, 0] {
            for call in CALLS {
                let buffers = Buffers::new(&attention, call);
                if call.reads_state() {
                    let mut buffers = buffers.clone();
                    buffers.initial.resize(got, 0.0);
                    let error = buffers.refused(&attention, call);
                    assert_eq!(error, Error::Length { what: "state", want, got }, "{call:?}");
                }
                if matches!(call, Call::Final | Call::InitialFinal) {
                    let mut buffers = buffers.clone();
                    buffers.last.resize(got, SENTINEL);
                    let error = buffers.refused(&attention, call);
                    assert_eq!(error, Error::Length { what: "state", want, got }, "{call:?}");
                }
            }
        }
    }
}

#[test]
fn states_of_another_configuration() {
    // The last element of each head counts the tokens in its current chunk, of 7.
    let attention = accepted(config(PER_CHUNK));
    let head = attention.state_len() / 4;
    let with = |call, counts: [f32; 4]| {
        let mut buffers = Buffers::new(&attention, call);
        buffers.initial.chunks_exact_mut(head).zip(counts).for_each(|(state, count)| state[head - 1] = count);
        buffers
    };
    for call in CALLS.into_iter().filter(|call| call.reads_state()) {
        for count in [
            -1.0,
            -f32::MIN_POSITIVE,
            0.5,
            6.5,
            7.0,
            8.0,
            1e9,
            1e30,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ] {
            assert_eq!(
                with(call, [count; 4]).refused(&attention, call),
                Error::BadState,
                "{call:?}: {count}"
            );
            // Only the second sequence is wrong.
            assert_eq!(
                with(call, [0.0, 0.0, count, count]).refused(&attention, call),
                Error::BadState,
                "{count}"
            );
        }
        // All heads of one sequence must have the same count.
        for counts in [[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0], [0.0, f32::NAN, 0.0, 0.0]] {
            assert_eq!(with(call, counts).refused(&attention, call), Error::BadState, "{call:?}: {counts:?}");
        }
        // Different sequences may have different counts.
        for counts in [[0.0; 4], [-0.0; 4], [6.0; 4], [1.0, 1.0, 6.0, 6.0], [6.0, 6.0, 0.0, 0.0]] {
            let after = with(call, counts).accepted(&attention, call);
            let last = match call {
                Call::Carried | Call::Decode => after.initial,
                Call::InitialFinal => after.last,
                _ => continue,
            };
            let tokens = if call == Call::Decode { 1.0 } else { 3.0 };
            let want = counts.map(|count| (count + tokens) % 7.0);
            assert!(last.chunks_exact(head).map(|state| state[head - 1]).eq(want), "{call:?}: {counts:?}");
        }
    }
    // States of other normalisers have no count, so that any number is valid.
    for normaliser in [Normaliser::None, Normaliser::Global { eps: 1e-6 }] {
        let attention = accepted(config(normaliser));
        let mut buffers = Buffers::new(&attention, Call::Carried);
        buffers.initial.fill(-1.5);
        buffers.accepted(&attention, Call::Carried);
    }
}

#[test]
fn no_tokens() {
    // Without sequences or without tokens, tensors may be empty, and the state does not change.
    for normaliser in normalisers(&[7]) {
        for (batch, len) in [(0, 3), (2, 0), (0, 0)] {
            let attention =
                accepted(with(config(normaliser), |c| (c.shape.batch, c.shape.len) = (batch, len)));
            let head = attention.state_len().checked_div(batch * 2).unwrap_or(0);
            for call in CALLS.into_iter().filter(|call| *call != Call::Decode) {
                let mut buffers = Buffers::new(&attention, call);
                assert!(
                    buffers.q.is_empty()
                        && buffers.k.is_empty()
                        && buffers.v.is_empty()
                        && buffers.o.is_empty()
                );
                // The last element makes the state that of the middle of a chunk, if the normaliser has
                // chunks.
                for state in buffers.initial.chunks_exact_mut(head.max(1)) {
                    state.copy_from_slice(&normals(1, head));
                    state[head - 1] = 4.0;
                }
                let before = buffers.initial.clone();
                buffers.o = vec![SENTINEL; 10];
                let after = buffers.accepted(&attention, call);
                assert!(untouched(&after.o, &[SENTINEL; 10]), "{call:?}");
                assert!(untouched(&after.initial, &before), "{call:?}");
                match call {
                    Call::Final => assert!(untouched(&after.last, &vec![0.0; before.len()]), "{call:?}"),
                    Call::InitialFinal => assert!(untouched(&after.last, &before), "{call:?}"),
                    _ => assert!(untouched(&after.last, &vec![SENTINEL; before.len()]), "{call:?}"),
                }
            }
        }
        let attention = accepted(with(config(normaliser), |c| c.shape.batch = 0));
        Buffers::new(&attention, Call::Decode).accepted(&attention, Call::Decode);
    }
}

#[test]
fn only_what_is_described_is_written() {
    for normaliser in normalisers(&[7]) {
        let attention = accepted(config(normaliser));
        for call in CALLS {
            let before = Buffers::new(&attention, call);
            let after = before.clone().accepted(&attention, call);
            let inputs =
                |buffers: &Buffers| [buffers.q.clone(), buffers.k.clone(), buffers.v.clone()].concat();
            assert!(untouched(&inputs(&before), &inputs(&after)));
            let carried = matches!(call, Call::Carried | Call::Decode);
            assert_eq!(untouched(&before.initial, &after.initial), !carried, "{call:?}");
            assert_eq!(untouched(&before.last, &after.last), !call.writes_state() || carried, "{call:?}");
            let len = if call == Call::Decode { 1 } else { attention.config().shape.len };
            let o = gather(&with(*attention.config(), |c| c.shape.len = len), &after.o);
            assert!(o.iter().all(|x| x.is_finite()), "{call:?}");
        }
    }
}

#[test]
fn messages() {
    for (error, text) in [
        (Error::Zero { what: "heads" }, "heads must be at least 1"),
        (Error::Overflow { what: "the state" }, "the state is too large for this machine's address space"),
        (
            Error::TooShort { what: "q", need: 10, got: 9 },
            "q holds 9 elements, its shape and strides reach 10",
        ),
        (Error::Length { what: "state", want: 10, got: 11 }, "state holds 11 elements, expected 10"),
        (Error::Overlap { what: "o" }, "the strides of o let two of its rows overlap"),
        (
            Error::NotFinite { what: "scale" },
            "scale must be a finite number, and not negative for an epsilon",
        ),
        (Error::NotPositive { what: "layer_norm_eps" }, "layer_norm_eps must be a finite number above zero"),
        (
            Error::TooMany { what: "tokens of a chunk", most: 1 << 24, got: 16_777_217 },
            "16777217 tokens of a chunk: at most 16777216 are possible",
        ),
        (Error::BadState, "the state was not made by this configuration"),
        (Error::Isa { name: "neon" }, "the instruction set neon is unknown or not available on this machine"),
    ] {
        assert_eq!(error.to_string(), text);
        let error: Box<dyn std::error::Error> = Box::new(error);
        assert!(error.source().is_none());
    }
}
