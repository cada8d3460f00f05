//! The start-up of a Cortex-M, by cortex-m-rt.

use cortex_m_rt::{ExceptionFrame, entry, exception};
use semihosting::{println, process};

#[entry]
fn start() -> ! {
    crate::main()
}

#[exception]
#[allow(non_snake_case, reason = "the vector's name")]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    println!("hard fault: {frame:?}");
    process::exit(1)
}
