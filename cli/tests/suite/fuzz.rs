//! Runs the check of the command line that `fuzz/` also runs, on bytes that are the same every time.

#[test]
fn arguments_and_files() {
    // xorshift64
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    for _ in 0..3000 {
        let len = random() % 600;
        crate::checks::cli::cli(&(0..len).map(|_| random() as u8).collect::<Vec<_>>());
    }
}
