//! Instruction sets as values: their names, a pinned one, and the default, which the environment variable
//! `CHUNKWISE_ISA` may name. A process reads this variable once, so each of its values is tried in a child
//! process, which runs one test of this file.

use chunkwise::{Attention, Config, Error, Isa, Normaliser, Rule, Shape, isa};

#[cfg(feature = "std")]
use crate::common::report;
use crate::common::with;

fn config(isa: Option<Isa>) -> Config {
    with(Config::new(Rule::linear(Normaliser::None), Shape::new(1, 1, 1, 1, 1)), |c| c.execution.isa = isa)
}

#[test]
fn names() {
    let available: Vec<Isa> = Isa::available().collect();
    assert_eq!(available.first(), Some(&Isa::Scalar), "every machine has it");
    assert_eq!(available.last(), Some(&Isa::best()));
    for name in isa::NAMES {
        let isa = Isa::from_name(name);
        // Capital letters make no difference.
        assert_eq!(Isa::from_name(&name.to_uppercase()), isa);
        match isa {
            Ok(isa) => {
                assert!(available.contains(&isa));
                assert_eq!((isa.name(), isa.to_string().as_str()), (name, name));
                assert_eq!(format!("{isa:>8}|"), format!("{name:>8}|"));
            }
            Err(error) => {
                assert_eq!(error, Error::Isa { name });
                assert!(!available.iter().any(|isa| isa.name() == name));
            }
        }
    }
    let lanes: Vec<usize> = available.iter().map(|isa| isa.lanes()).collect();
    assert!(lanes.is_sorted() && lanes[0] == 1, "best last: {lanes:?}");
    for name in ["", " scalar", "scalar ", "sse2", "avx", "avx512f", "avx2\0", "ＡＶＸ２"] {
        let error = Isa::from_name(name).expect_err("no such instruction set");
        assert_eq!(error, Error::Isa { name: "asked for" });
        assert_eq!(
            error.to_string(),
            "the instruction set asked for is unknown or not available on this machine"
        );
    }
}

#[test]
fn constructors_are_names() {
    assert_eq!(Isa::avx2(), Isa::from_name("avx2").ok());
    assert_eq!(Isa::avx512(), Isa::from_name("avx512").ok());
    assert_eq!(Isa::neon(), Isa::from_name("neon").ok());
    assert_eq!(Isa::simd128(), Isa::from_name("simd128").ok());
    // x86-64-v4 includes v3, and no machine has the sets of several architectures.
    assert!(Isa::avx512().is_none() || Isa::avx2().is_some());
    assert!(Isa::neon().is_none() || Isa::avx2().is_none());
    assert!(Isa::simd128().is_none() || (Isa::neon().is_none() && Isa::avx2().is_none()));
}

#[test]
fn a_pinned_one_is_the_one_that_runs() {
    for isa in Isa::available() {
        let attention = Attention::new(config(Some(isa))).expect("a legal configuration");
        assert_eq!((attention.isa(), attention.config().execution.isa), (isa, Some(isa)));
    }
}

/// Tests of the environment variable, which is read only with `std`.
#[cfg(feature = "std")]
mod environment {
    use super::*;

    /// Prints the default in a child process, and checks that pinned instruction sets don't depend on it.
    #[test]
    #[ignore = "for the tests below, which set the environment"]
    fn child() {
        match Attention::new(config(None)) {
            Ok(attention) => println!("answer: {}", attention.isa()),
            Err(error) => println!("answer: {error}"),
        }
        for isa in Isa::available() {
            assert_eq!(Attention::new(config(Some(isa))).map(|attention| attention.isa()), Ok(isa));
        }
    }

    /// The answer that `child` prints with a value of the variable, or `None` where no process can be started
    /// (an emulator that runs only this program).
    fn answer(value: Option<&str>) -> Option<String> {
        let mut command = crate::child::command(std::env::current_exe().expect("a path to this test"));
        command
            .args(["--exact", "isa::environment::child", "--ignored", "--nocapture"])
            .env_remove("CHUNKWISE_ISA");
        command.envs(value.map(|value| ("CHUNKWISE_ISA", value)));
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => {
                report(&format!("CHUNKWISE_ISA: NOT tested, there is no child process here: {error}"));
                return None;
            }
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{value:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        // The test harness may have begun the line.
        let (_, rest) = text.split_once("answer: ").unwrap_or_else(|| panic!("no answer: {text}"));
        rest.lines().next().map(str::to_owned)
    }

    #[track_caller]
    fn expect(value: Option<&str>, want: &str) {
        if let Some(got) = answer(value) {
            assert_eq!(got, want, "CHUNKWISE_ISA={value:?}");
        }
    }

    #[test]
    fn the_environment_names_the_default() {
        for isa in Isa::available() {
            expect(Some(isa.name()), isa.name());
            expect(Some(&isa.name().to_uppercase()), isa.name());
        }
    }

    #[test]
    fn without_it_the_default_is_the_best() {
        expect(None, Isa::best().name());
        expect(Some(""), Isa::best().name());
    }

    #[test]
    fn unavailable_isa_is_an_error() {
        let unknown = "the instruction set in CHUNKWISE_ISA is unknown or not available on this machine";
        for value in ["mmx", "best", " avx2", "0"] {
            expect(Some(value), unknown);
        }
        for name in isa::NAMES.into_iter().filter(|name| Isa::from_name(name).is_err()) {
            let missing = format!("the instruction set {name} is unknown or not available on this machine");
            expect(Some(name), &missing);
        }
    }
}
