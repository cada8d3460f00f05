//! `include/chunkwise.h` agrees with the Rust types: this test writes a C file of assertions from the Rust
//! types (sizes, offsets and types of fields, constants, prototypes), and the C compiler checks it against
//! the header.
use std::collections::BTreeSet;
use std::ffi::{c_char, c_void};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use chunkwise::capi::args::*;
use chunkwise::capi::attention::*;
use chunkwise::capi::backward::*;
#[cfg(feature = "cuda")]
use chunkwise::capi::cuda::*;
use chunkwise::capi::draft::*;
#[cfg(feature = "files")]
use chunkwise::capi::file::*;
use chunkwise::capi::layers::*;
use chunkwise::capi::model::*;
use chunkwise::capi::state::*;
use chunkwise::capi::status::*;
use chunkwise::capi::*;
use chunkwise::{Attention, Config, Gate, Heads, Isa, Normaliser, Rule, Shape};

/// A type that C has too.
trait C {
    /// The declaration in C of a name with this type.
    fn declare(name: &str) -> String;
}

macro_rules! named {
    ($($type:ty, $name:literal;)*) => {$(
        impl C for $type {
            fn declare(name: &str) -> String {
                format!("{} {name}", $name)
            }
        }
    )*};
}

named! {
    u32, "uint32_t"; i32, "int32_t"; u64, "uint64_t"; f32, "float"; c_char, "char"; c_void, "void"; (), "void";
    cw_tensor, "cw_tensor"; cw_attention, "cw_attention"; cw_call, "cw_call"; cw_gradients, "cw_gradients"; cw_sizes, "cw_sizes"; cw_conv, "cw_conv"; cw_gated_norm, "cw_gated_norm";
    cw_parameter, "cw_parameter"; cw_model, "cw_model"; cw_model_config, "cw_model_config";
    cw_model_sizes, "cw_model_sizes"; cw_model_call, "cw_model_call"; cw_model_file, "cw_model_file";
}

#[cfg(feature = "cuda")]
named! { cw_cuda, "cw_cuda"; }

impl<T: C> C for *const T {
    fn declare(name: &str) -> String {
        // For a pointer to a constant pointer, `const` follows the inner star.
        match T::declare("").trim() {
            inner if inner.ends_with('*') => format!("{inner} const *{name}"),
            inner => format!("const {inner} *{name}"),
        }
    }
}

impl<T: C> C for *mut T {
    fn declare(name: &str) -> String {
        T::declare(&format!("*{name}"))
    }
}

impl<T: C> C for [T; 4] {
    fn declare(name: &str) -> String {
        // An array only occurs as a field, to which a pointer is taken.
        T::declare(&format!("({name})[4]"))
    }
}

macro_rules! functions {
    ($($argument:ident)*) => {
        impl<R: C, $($argument: C),*> C for unsafe extern "C" fn($($argument),*) -> R {
            fn declare(name: &str) -> String {
                let arguments: Vec<String> = vec![$($argument::declare("")),*];
                let arguments = if arguments.is_empty() { "void".into() } else { arguments.join(", ") };
                R::declare(&format!("(*{name})({arguments})"))
            }
        }
    };
}

functions! {}
functions! { A }
functions! { A B }
functions! { A B D }
functions! { A B D E }
functions! { A B D E F }
functions! { A B D E F G }
functions! { A B D E F G H }
functions! { A B D E F G H I }

fn declare_as<T: C>(_: T, name: &str) -> String {
    T::declare(name)
}

fn declare_field<S, T: C>(_: fn(&S) -> &T, name: &str) -> String {
    T::declare(name)
}

/// A value that C++ can compare.
trait Value {
    /// The expression in C++ that compares `place` with this value.
    fn equals(&self, place: &str) -> String;
}

macro_rules! numbers {
    ($($type:ty, $suffix:literal;)*) => {$(
        impl Value for $type {
            fn equals(&self, place: &str) -> String {
                format!("{place} == {self:?}{}", $suffix)
            }
        }
    )*};
}

numbers! { u32, "u"; u64, "ull"; f32, "f"; }

impl<T> Value for *const T {
    fn equals(&self, place: &str) -> String {
        assert!(self.is_null(), "{place}");
        format!("{place} == nullptr")
    }
}

impl<T> Value for *mut T {
    fn equals(&self, place: &str) -> String {
        self.cast_const().equals(place)
    }
}

impl<T: Value> Value for [T; 4] {
    fn equals(&self, place: &str) -> String {
        let each = self.iter().enumerate().map(|(i, value)| value.equals(&format!("{place}[{i}]")));
        each.collect::<Vec<_>>().join(" && ")
    }
}

impl Value for cw_tensor {
    fn equals(&self, place: &str) -> String {
        let Self { data, dtype, rank, dims, strides } = self;
        let fields: [(&dyn Value, &str); 5] =
            [(data, "data"), (dtype, "dtype"), (rank, "rank"), (dims, "dims"), (strides, "strides")];
        fields.map(|(value, name)| value.equals(&format!("{place}.{name}"))).join(" && ")
    }
}

/// Assertions in C, and in C++, which can compare the fields of a constant structure at compile time.
struct Assertions {
    c: String,
    cpp: String,
}

/// Adds assertions for every field of a structure; a list that leaves out a field does not compile. The
/// initialiser is that of the header, with arguments of 0.
macro_rules! structure {
    ($code:ident, $name:ident { $($field:ident),* } = $initialiser:literal) => {{
        structure!($code, $name { $($field),* });
        let name = stringify!($name);
        writeln!($code.cpp, "constexpr {name} of_{name} = {};", $initialiser).unwrap();
        $({
            let place = concat!("of_", stringify!($name), ".", stringify!($field));
            let equals = $name::DEFAULT.$field.equals(place);
            writeln!($code.cpp, "static_assert({equals}, \"{place}\");").unwrap();
        })*
    }};
    ($code:ident, $name:ident { $($field:ident),* }) => {{
        let $code = &mut $code.c;
        let name = stringify!($name);
        let _all = |value: $name| { let $name { $($field: _),* } = value; };
        writeln!($code, "_Static_assert(sizeof({name}) == {}, \"{name}\");", size_of::<$name>()).unwrap();
        writeln!($code, "_Static_assert(_Alignof({name}) == {}, \"{name}\");", align_of::<$name>()).unwrap();
        $(
            let (field, offset) = (stringify!($field), std::mem::offset_of!($name, $field));
            writeln!($code, "_Static_assert(offsetof({name}, {field}) == {offset}, \"{name}.{field}\");").unwrap();
            let pointer = declare_field(|s: &$name| &s.$field, "*pointer");
            writeln!($code, "void {name}_{field}({name} *s) {{ {pointer} = &s->{field}; (void)pointer; }}").unwrap();
        )*
    }};
}

/// Adds an assertion for each function, and returns the names. Each is listed with a `_` for each argument,
/// whose type the compiler infers.
macro_rules! prototypes {
    ($code:ident, $($name:ident($($argument:ty),*);)*) => {{
        $(
            let pointer = concat!("check_", stringify!($name));
            let pointer = declare_as($name as unsafe extern "C" fn($($argument),*) -> _, pointer);
            writeln!($code, "extern {pointer};\n{pointer} = {};", stringify!($name)).unwrap();
        )*
        BTreeSet::from([$(stringify!($name)),*])
    }};
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The text of a header without its comments.
fn header(path: &str) -> String {
    let text = std::fs::read_to_string(root(path)).unwrap();
    let mut parts = text.split("/*");
    let first = parts.next().unwrap().to_string();
    parts.fold(first, |code, part| code + part.split_once("*/").unwrap().1)
}

/// The assertions, and the names of the functions in them.
fn assertions() -> (Assertions, BTreeSet<&'static str>) {
    let mut code = Assertions {
        c: String::from("#include <stddef.h>\n#include \"chunkwise.h\"\n"),
        cpp: String::from("#include \"chunkwise.h\"\n"),
    };
    structure!(code, cw_tensor { data, dtype, rank, dims, strides });
    structure!(
        code,
        cw_attention {
            size,
            abi,
            feature_map,
            normaliser,
            feature_eps,
            normaliser_eps,
            chunk,
            scale,
            compensated,
            products,
            isa,
            threads,
            not_causal,
            update,
            gate,
            gate_map,
            gate_lower,
            beta_map,
            head_order,
            qk_norm,
            qk_norm_eps
        } = "CW_ATTENTION(0, 0, 0)"
    );
    // Other rules than the default.
    for (initialiser, update) in [("CW_GATED", "CW_UPDATE_LINEAR"), ("CW_DELTA", "CW_UPDATE_DELTA")] {
        let (name, cpp) = (initialiser.to_lowercase(), &mut code.cpp);
        writeln!(cpp, "constexpr cw_attention of_{name} = {initialiser}(CW_GATE_KEY);").unwrap();
        for (field, value) in [
            ("feature_map", "CW_IDENTITY"),
            ("normaliser", "CW_NONE"),
            ("scale", "1.0f"),
            ("threads", "1"),
            ("update", update),
            ("gate", "CW_GATE_KEY"),
            ("qk_norm", "0"),
        ] {
            writeln!(cpp, "static_assert(of_{name}.{field} == {value}, \"{name}, {field}\");").unwrap();
        }
    }
    structure!(
        code,
        cw_call {
            size,
            abi,
            q,
            k,
            v,
            o,
            state_in,
            state_out,
            state_bytes,
            scratch,
            scratch_bytes,
            g,
            beta,
            a_log,
            dt_bias,
            sequences,
            sequence_count
        } = "CW_CALL"
    );
    structure!(
        code,
        cw_gradients { size, abi, o, q, k, v, g, state_out, state_in, state_bytes } = "CW_GRADIENTS"
    );
    structure!(
        code,
        cw_sizes {
            size,
            abi,
            state_bytes,
            state_align,
            forward_scratch_bytes,
            decode_scratch_bytes,
            scratch_align,
            record_bytes,
            backward_scratch_bytes
        } = "CW_SIZES"
    );
    structure!(
        code,
        cw_conv {
            size,
            abi,
            x,
            y,
            weight,
            bias,
            width,
            activation,
            isa,
            state_in,
            state_out,
            state_bytes,
            sequences,
            sequence_count
        } = "CW_CONV"
    );
    structure!(code, cw_gated_norm { size, abi, x, z, y, eps, gate, isa, weight } = "CW_GATED_NORM");
    structure!(code, cw_parameter { name, tensor });
    structure!(
        code,
        cw_model_config {
            size,
            abi,
            embed_dim,
            hidden_size,
            num_heads,
            num_layers,
            chunk_size,
            seq_len,
            feature_map,
            feature_eps,
            output_mode,
            final_norm,
            layer_norm_eps,
            layer_norm_clip,
            attention,
            reserved
        } = "CW_MODEL_CONFIG(0)"
    );
    structure!(
        code,
        cw_model_sizes {
            size,
            abi,
            embed_dim,
            hidden_size,
            head_size,
            output_bytes,
            state_bytes,
            forward_scratch_bytes,
            step_scratch_bytes,
            head_scratch_bytes,
            align
        } = "CW_MODEL_SIZES"
    );
    structure!(
        code,
        cw_model_call {
            size,
            abi,
            batch,
            len,
            input,
            input_bytes,
            output,
            output_bytes,
            state,
            state_bytes,
            scratch,
            scratch_bytes
        } = "CW_MODEL_CALL"
    );
    structure!(
        code,
        cw_model_file { size, abi, bytes, bytes_len, json, json_len, isa, threads, message, message_bytes } =
            "CW_MODEL_FILE"
    );
    sizes(&mut code.c);
    let c = &mut code.c;
    writeln!(c, "_Static_assert(CW_ABI_VERSION == {CW_ABI_VERSION}, \"abi\");").unwrap();
    for (name, value) in constants() {
        writeln!(c, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    #[allow(unused_mut, reason = "more are there with files")]
    let mut functions = prototypes! { c,
        cw_status_string(_);
        cw_version();
        cw_abi_version();
        cw_isas();
        cw_isa_default(_);
        cw_isa_name(_);
        cw_attention_sizes(_, _, _);
        cw_state_init(_, _);
        cw_state_to_value_major(_, _, _, _, _);
        cw_state_from_value_major(_, _, _, _, _);
        cw_forward(_, _);
        cw_decode(_, _);
        cw_forward_range(_, _, _, _);
        cw_decode_range(_, _, _, _);
        cw_verify(_, _, _, _);
        cw_verify_range(_, _, _, _, _, _);
        cw_commit(_, _, _, _, _);
        cw_backward(_, _, _);
        cw_conv_sizes(_, _);
        cw_conv_forward(_);
        cw_conv_decode(_);
        cw_gated_norm_forward(_);
        cw_model_memory(_, _, _);
        cw_model_init(_, _, _, _, _, _, _, _);
        cw_model_sizes_of(_, _, _, _);
        cw_model_forward(_, _);
        cw_model_step(_, _);
        cw_model_head(_, _);
    };
    #[cfg(feature = "files")]
    functions.extend(prototypes! { c,
        cw_model_file_config(_, _);
        cw_model_load(_, _, _, _);
        cw_model_open(_, _, _);
        cw_model_close(_);
    });
    (code, functions)
}

/// The same for the functions of `chunkwise_cuda.h`.
#[cfg(feature = "cuda")]
fn cuda_assertions() -> (String, BTreeSet<&'static str>) {
    let mut code = String::from("#include \"chunkwise_cuda.h\"\n");
    let functions = prototypes! { code,
        cw_cuda_open(_, _, _, _);
        cw_cuda_close(_);
        cw_cuda_sizes(_, _, _, _, _, _);
        cw_cuda_prepare(_, _, _, _, _);
        cw_cuda_forward(_, _, _, _, _, _);
        cw_cuda_decode(_, _, _, _, _, _);
    };
    (code, functions)
}

/// Adds assertions for the header's sizes at compile time: sizes of states are exact, and sizes of scratch
/// are at least those of the library. Where outputs share a head of the state, the bounds are those that the
/// header documents.
fn sizes(code: &mut String) {
    let shapes = [1, 3, 8].into_iter().flat_map(|heads| [1, 16, 17, 100].map(|key| (heads, key)));
    for (heads, key, value) in shapes.flat_map(|(h, k)| [1, 8, 16, 17, 64, 130].map(|v| (h, k, v))) {
        let mut assert = |what: String| writeln!(code, "_Static_assert({what}, \"{what}\");").unwrap();
        let shape = |queries| Shape::grouped(2, 100, Heads::new(queries * heads, heads, heads), key, value);
        let linear = Attention::scratch_bound(heads, key, value);
        let gated = Attention::gated_scratch_bound(heads, key, value);
        let (mut forward, mut decode) = ([linear.max(gated), 0], [0; 2]);
        // Elements of the largest state of a head, rounded up: where outputs share it, a decode computes on a
        // copy.
        let mut head = 0;
        for (name, rules) in rules() {
            let state = Attention::new(Config::new(rules[0], shape(1))).unwrap().state_len();
            assert(format!("CW_STATE_BYTES(2, {heads}, {key}, {value}, {name}) == {}", 4 * state));
            for (isa, rule) in Isa::available().flat_map(|isa| rules.iter().map(move |rule| (isa, *rule))) {
                for (i, queries) in [1, 3].into_iter().enumerate() {
                    let attention = Attention::new(Config::new(rule, shape(queries)).isa(isa)).unwrap();
                    forward[i] = forward[i].max(attention.scratch_len());
                    decode[i] = decode[i].max(attention.decode_scratch_len());
                    head = head.max((attention.state_len() / (2 * heads)).next_multiple_of(16));
                }
            }
        }
        for (heads, forward) in [(heads, forward[0]), (heads + 1, forward[1])] {
            assert(format!("CW_FORWARD_SCRATCH_BYTES_MAX({heads}, {key}, {value}) >= {}", 4 * forward));
        }
        for (decode, head) in [(decode[0], 0), (decode[1], head)] {
            let bound = format!("CW_DECODE_SCRATCH_BYTES_MAX({key}, {value}) + {}", 4 * head);
            assert(format!("{bound} >= {}", 4 * decode));
        }
    }
}

/// Rules by normaliser; the state of the first rule of each is not compensated.
fn rules() -> [(&'static str, Vec<Rule>); 3] {
    let with = |rule: Rule| [rule, rule.compensated(true)];
    let global = Normaliser::Global { eps: 1e-6 };
    let gated = [Gate::Scalar, Gate::Key].map(Rule::gated);
    let delta = [Gate::None, Gate::Scalar, Gate::Key].map(Rule::delta);
    let none = with(Rule::linear(Normaliser::None)).into_iter().chain(gated).chain(delta);
    let global = with(Rule::linear(global)).into_iter().chain(gated.map(|rule| rule.normaliser(global)));
    let per_chunk = with(Rule::linear(Normaliser::per_chunk(64)));
    [("CW_NONE", none.collect()), ("CW_GLOBAL", global.collect()), ("CW_PER_CHUNK", per_chunk.into())]
}

fn constants() -> impl Iterator<Item = (&'static str, i64)> {
    let statuses = STATUSES.iter().map(|(name, value)| (*name, i64::from(*value)));
    statuses.chain(CHOICES.iter().map(|(name, value)| (*name, i64::from(*value))))
}

/// Compiles a file of assertions in a language; returns false if there is no compiler for it.
fn compiles(code: &str, name: &str, language: [&str; 2]) -> bool {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, code).unwrap();
    let compiler = std::env::var("CC").unwrap_or("cc".into());
    let run = |file: &Path| {
        Command::new(&compiler)
            .args([
                "-x",
                language[0],
                language[1],
                "-Wall",
                "-Wextra",
                "-Werror",
                "-pedantic",
                "-fsyntax-only",
                "-I",
            ])
            .args([&root("include"), file])
            .output()
    };
    // There may be no compiler where tests run for another machine. `.ci/c` runs this test with compilers of
    // C and C++.
    let empty = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.empty"));
    std::fs::write(&empty, "typedef int nothing;\n").unwrap();
    if !run(&empty).is_ok_and(|run| run.status.success()) {
        eprintln!("{compiler} does not compile {language:?}: the header was NOT compared");
        return false;
    }
    let run = run(&file).unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    true
}

#[test]
fn header_matches_rust() {
    let (Assertions { c, cpp }, _) = assertions();
    if compiles(&c, "c_header.c", ["c", "-std=c11"]) {
        compiles(&cpp, "c_header.cpp", ["c++", "-std=c++14"]);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn gpu_header_matches_rust() {
    let (code, functions) = cuda_assertions();
    compiles(&code, "c_header_cuda.c", ["c", "-std=c11"]);
    let header = header("include/chunkwise_cuda.h");
    let declared = functions_of(&header);
    assert_eq!(declared, functions);
}

/// The functions that a header declares.
fn functions_of(header: &str) -> BTreeSet<&str> {
    header
        .split(|c: char| c != '(' && c != '_' && !c.is_ascii_alphanumeric())
        .filter_map(|word| word.split_once('('))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("cw_") && *name != "cw_bthd")
        .collect()
}

/// The header, the Rust code and the list of the shared library's exports contain the same names.
#[test]
fn nothing_is_in_one_of_them_only() {
    let header = header("include/chunkwise.h");
    let words = |line: &'static str| line.split_whitespace().next();
    let listed: BTreeSet<&str> =
        include_str!("../include/chunkwise.symbols").lines().filter_map(words).collect();
    let (_, functions) = assertions();
    if cfg!(feature = "files") {
        assert_eq!(functions, listed);
    }
    let declared = functions_of(&header);
    assert_eq!(declared, listed);

    let numbered = |text: &str| {
        let (name, value) = text.split_once('=')?;
        let value = value.trim().parse::<i64>().ok()?;
        Some((name.split_whitespace().last()?.to_string(), value))
    };
    let enums = header.split("enum {").skip(1).map(|rest| rest.split_once('}').unwrap().0);
    let in_header: BTreeSet<_> = enums.flat_map(|body| body.split(',').filter_map(numbered)).collect();
    assert_eq!(in_header, constants().map(|(name, value)| (name.to_string(), value)).collect());
}

/// The examples in docs/c.md compile as C.
#[test]
fn the_documentation_s_examples_compile() {
    let text = include_str!("../docs/c.md");
    let examples: Vec<&str> =
        text.split("```c\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    assert!(!examples.is_empty());
    for example in examples {
        compiles(example, "documentation.c", ["c", "-std=c99"]);
    }
}
