//! The driver API as a program uses it. There is only one test function, because the process has one driver state.

mod common;

use common::{HEAD, module};
use cuda_emulator::control::*;
use cuda_emulator::counters::Counters;
use cuda_emulator::driver::*;
use std::ffi::{CStr, CString, c_int, c_void};
use std::mem::MaybeUninit;

fn out<T: Copy>(f: impl FnOnce(Out<T>) -> i32) -> Result<T, i32> {
    let mut v = MaybeUninit::uninit();
    match f(Some(&mut v)) {
        // SAFETY: a call that succeeds has written the value.
        0 => Ok(unsafe { v.assume_init() }),
        code => Err(code),
    }
}

fn load(text: &str) -> Result<usize, (i32, String)> {
    let text = CString::new(text).unwrap();
    let mut log = [0u8; 200];
    let options = [5, 6];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(log.len())];
    // SAFETY: there are two options with their values, and the text is a C string.
    let got =
        out(|o| unsafe { cuModuleLoadDataEx(o, text.as_ptr(), 2, options.as_ptr(), values.as_mut_ptr()) });
    got.map_err(|code| (code, CStr::from_bytes_until_nul(&log).unwrap().to_string_lossy().into_owned()))
}

fn function(module: usize, name: &CStr) -> Result<usize, i32> {
    // SAFETY: the argument is a C string.
    out(|o| unsafe { cuModuleGetFunction(o, module, name.as_ptr()) })
}

fn launch(f: usize, threads: u32, dynamic: u32, at: u64) -> i32 {
    let params = [(&raw const at).cast::<c_void>()];
    // SAFETY: the kernels of this file have one parameter, of eight bytes.
    unsafe { cuLaunchKernel(f, 1, 1, 1, threads, 1, 1, dynamic, 0, params.as_ptr(), std::ptr::null()) }
}

fn live() -> Live {
    let mut live = Live::default();
    emulator_live(Some(&mut live));
    live
}

fn fault_text() -> String {
    let mut text = [0u8; 300];
    // SAFETY: the array has that many bytes.
    unsafe { emulator_fault(text.as_mut_ptr().cast(), 300) };
    CStr::from_bytes_until_nul(&text).unwrap().to_string_lossy().into_owned()
}

fn fail(symbol: &CStr, code: c_int, after: u64) {
    // SAFETY: the argument is a C string.
    unsafe { emulator_fail(symbol.as_ptr(), code, after) }
}

fn body(target: &str, body: &str) -> String {
    module(
        target,
        1,
        ".maxntid 256",
        &format!("{HEAD} ld.param.u64 %d1, [p0]; add.u64 %d2, %d1, %d0; {body}"),
    )
}

#[test]
fn all() {
    contexts();
    memory();
    modules();
    launches();
    faults();
    failures();
    names();
}

fn start() {
    emulator_reset();
    assert_eq!(cuInit(0), 0);
    let context = out(|o| cuDevicePrimaryCtxRetain(o, 0)).unwrap();
    assert_eq!(cuCtxSetCurrent(context), 0);
}

fn contexts() {
    emulator_reset();
    assert_eq!(out(|o| cuDeviceGetCount(o)), Err(3));
    emulator_device(0, 8, 0, 108, 166_912);
    assert_eq!(cuInit(0), 100);
    emulator_device(2, 8, 6, 84, 101_376);
    assert_eq!(cuInit(0), 0);
    assert_eq!(out(|o| cuDeviceGetCount(o)), Ok(2));
    assert_eq!(out(|o| cuDeviceGet(o, 2)), Err(101));
    let attribute = |a| out(|o| cuDeviceGetAttribute(o, a, 1)).unwrap();
    assert_eq!([16, 75, 76, 97, 8].map(attribute), [84, 8, 6, 101_376, 49152]);
    assert_eq!(out(|o| cuMemAlloc_v2(o, 16)), Err(201));
    assert_eq!(cuCtxSynchronize(), 201);
    let context = out(|o| cuDevicePrimaryCtxRetain(o, 1)).unwrap();
    assert_eq!(cuCtxPushCurrent_v2(context), 0);
    assert_eq!((live().pushed, live().retained, out(|o| cuCtxGetDevice(o))), (1, 1, Ok(1)));
    let elsewhere = std::thread::spawn(|| out(|o| cuMemAlloc_v2(o, 16))).join().unwrap();
    assert_eq!(elsewhere, Err(201));
    assert_eq!(out(|o| cuCtxPopCurrent_v2(o)), Ok(context));
    assert_eq!(cuDevicePrimaryCtxRelease_v2(1), 0);
    assert_eq!(cuDevicePrimaryCtxRelease_v2(1), 201);
    assert_eq!(live(), Live::default());
}

fn memory() {
    start();
    let at = out(|o| cuMemAlloc_v2(o, 64)).unwrap();
    let mut host = [0u8; 64];
    // SAFETY: both sides have 64 bytes.
    unsafe {
        assert_eq!(cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), at, 64), 0);
        assert_eq!(host, [0xff; 64]);
        assert_eq!(cuMemcpyHtoD_v2(at + 1, host.as_ptr().cast(), 64), 1);
        assert_eq!(cuMemsetD32Async(at + 4, 0x0102_0304, 2, 0), 0);
        assert_eq!(cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), at, 13, 0), 0);
        assert_eq!(host[3..13], [255, 4, 3, 2, 1, 4, 3, 2, 1, 255]);
        let mut kind = 0u32;
        assert_eq!(cuPointerGetAttribute((&raw mut kind).cast(), 2, at), 0);
        assert_eq!(kind, 2);
        assert_eq!(cuPointerGetAttribute((&raw mut kind).cast(), 2, host.as_ptr() as u64), 1);
    }
    emulator_memory(100);
    assert_eq!(out(|o| cuMemAlloc_v2(o, 64)), Err(2));
    assert_eq!(cuMemFree_v2(at), 0);
    assert_eq!(cuMemFree_v2(at), 1);
}

fn modules() {
    start();
    let plain = body("sm_80", "");
    assert!(load(&plain).is_ok());
    emulator_device(1, 7, 5, 40, 65536);
    assert_eq!(load(&plain).unwrap_err().0, 209);
    emulator_device(1, 9, 0, 132, 232_448);
    assert!(load(&body("sm_90a", "")).is_ok());
    emulator_device(1, 10, 0, 148, 232_448);
    assert_eq!(load(&body("sm_90a", "")).unwrap_err().0, 209);
    emulator_driver_version(11080);
    assert_eq!(load(&plain).unwrap_err().0, 222);
    emulator_driver_version(12000);
    assert!(load(&plain).is_ok());
    let (code, log) = load(&body("sm_80", "\nfrob.u32 %r1, %r2;")).unwrap_err();
    assert!(code == 218 && log.contains("line 9: frob.u32"), "{log}");
    let m = load(&plain).unwrap();
    assert_eq!(function(m, c"nothing"), Err(500));
    assert_eq!((cuModuleUnload(m), cuModuleUnload(m)), (0, 400));
}

fn launches() {
    start();
    let at = out(|o| cuMemAlloc_v2(o, 1024)).unwrap();
    let m = load(&body("sm_80", "st.global.u32 [%d2], %r0;")).unwrap();
    let f = function(m, c"k").unwrap();
    assert_eq!(launch(f, 256, 0, at), 0);
    assert_eq!(cuCtxSynchronize(), 0);
    let mut host = [0u32; 256];
    // SAFETY: both sides have 1024 bytes.
    assert_eq!(unsafe { cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), at, 1024) }, 0);
    assert_eq!(host, std::array::from_fn(|i| i as u32));
    let mut counters = Counters::default();
    emulator_counters(Some(&mut counters));
    assert_eq!((counters.launches, counters.global_written, counters.global_sectors), (1, 1024, 32));
    // A launch fails with too many threads, with none, and with too much shared memory unless an attribute allows it.
    assert_eq!((launch(f, 257, 0, at), launch(f, 0, 0, at), launch(f, 32, 49153, at)), (1, 1, 1));
    assert_eq!((cuFuncSetAttribute(f, 8, 232_449), cuFuncSetAttribute(f, 8, 100_000)), (1, 0));
    assert_eq!((launch(f, 32, 100_000, at), launch(f, 32, 100_001, at)), (0, 1));
    assert_eq!(out(|o| cuOccupancyMaxActiveBlocksPerMultiprocessor(o, f, 256, 100_000)), Ok(2));
    assert_eq!(out(|o| cuFuncGetAttribute(o, 0, f)), Ok(256));
    assert_eq!(launch(f + 1, 32, 0, at), 400);
    let (a, b) = (out(|o| cuEventCreate(o, 0)).unwrap(), out(|o| cuEventCreate(o, 0)).unwrap());
    assert_eq!((cuEventRecord(a, 0), cuEventRecord(b, 0), cuEventSynchronize(b)), (0, 0, 0));
    assert!(out(|o| cuEventElapsedTime(o, a, b)).unwrap() >= 0.0);
    let s = out(|o| cuStreamCreate(o, 1)).unwrap();
    assert_eq!((live().streams, live().events, live().modules, live().bytes), (1, 2, 1, 1024));
    assert_eq!((cuStreamSynchronize(s), cuStreamDestroy_v2(s), cuStreamSynchronize(s)), (0, 0, 400));
}

fn faults() {
    for (bad, code) in
        [("st.global.u32 [%d2+64], %r0;", 700), ("st.global.u32 [%d2+1], %r0;", 716), ("trap;", 719)]
    {
        start();
        let at = out(|o| cuMemAlloc_v2(o, 64)).unwrap();
        let f = function(load(&body("sm_80", bad)).unwrap(), c"k").unwrap();
        assert_eq!(fault_text(), "");
        // The fault is reported when the host waits, and from then on. Calls that free memory still do so.
        assert_eq!((launch(f, 1, 0, at), cuCtxSynchronize()), (0, code));
        assert_eq!(out(|o| cuMemAlloc_v2(o, 64)), Err(code));
        assert_eq!((launch(f, 1, 0, at), cuMemFree_v2(at)), (code, code));
        assert_eq!(live().allocations, 0);
        assert!(fault_text().contains("[k, block (0,0,0), warp 0"), "{}", fault_text());
    }
    start();
    emulator_budget(100);
    let f = function(load(&body("sm_80", "L: bra L;")).unwrap(), c"k").unwrap();
    assert_eq!((launch(f, 1, 0, 0), cuStreamSynchronize(0)), (0, 719));
    // A disabled check finds nothing.
    start();
    emulator_checks(!cuda_emulator::fault::check::UNWRITTEN);
    let f = function(load(&body("sm_80", ".shared .b32 s; ld.shared.u32 %r1, [s];")).unwrap(), c"k").unwrap();
    assert_eq!((launch(f, 1, 0, 0), cuCtxSynchronize()), (0, 0));
}

fn failures() {
    start();
    fail(c"cuMemAlloc_v2", 2, 1);
    assert!(out(|o| cuMemAlloc_v2(o, 64)).is_ok());
    assert_eq!(out(|o| cuMemAlloc_v2(o, 64)), Err(2));
    assert_eq!(out(|o| cuMemAlloc_v2(o, 64)), Err(2));
    fail(c"cuMemAlloc_v2", 0, 0);
    assert!(out(|o| cuMemAlloc_v2(o, 64)).is_ok());
    // SAFETY: the argument is a C string.
    assert_eq!(unsafe { emulator_calls(c"cuMemAlloc_v2".as_ptr()) }, 4);
}

fn names() {
    let name = |code| {
        // SAFETY: the pointer is a static C string.
        out(|o| cuGetErrorName(code, o)).map(|p| unsafe { CStr::from_ptr(p) })
    };
    assert_eq!(name(700), Ok(c"CUDA_ERROR_ILLEGAL_ADDRESS"));
    assert_eq!(name(12345), Err(1));
}
