//! The panic handler that a program without an operating system needs. No panic of the library is known, so
//! this handler reports nothing. A program that wants to report panics provides its own handler and leaves
//! the feature `panic-handler` out.

#[panic_handler]
fn stop(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
