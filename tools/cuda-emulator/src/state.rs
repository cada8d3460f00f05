//! The state of the driver: devices, contexts, modules, memory and the settings of tests. There is one state per
//! process, behind a lock.

use crate::counters::Counters;
use crate::launch::{Options, Policy};
use crate::memory::Buffer;
use crate::parse::Module;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A CUresult.
pub type Code = i32;
/// The result of a call, whose error is a CUresult.
pub type Res = Result<(), Code>;

/// The properties of the devices, which are all alike.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// The number of devices.
    pub count: i32,
    /// The major number of the compute capability.
    pub major: i32,
    /// The minor number of the compute capability.
    pub minor: i32,
    /// The number of multiprocessors.
    pub sms: i32,
    /// The most shared memory that a block may have, in bytes.
    pub shared: i32,
}

/// A kernel of a loaded module.
pub struct Function {
    /// The handle of the module.
    pub module: usize,
    /// The index of the entry in the module.
    pub entry: usize,
    /// The limit of dynamic shared memory that cuFuncSetAttribute has set.
    pub max_dynamic: i32,
}

/// The state of the driver.
pub struct State {
    pub(crate) device: Device,
    pub(crate) driver: i32,
    pub(crate) memory_limit: usize,
    pub(crate) options: Options,
    pub(crate) initialised: bool,
    /// The number of retains of the primary context that are not released, by device.
    pub(crate) retained: HashMap<i32, u32>,
    pub(crate) pushed: i64,
    pub(crate) memory: BTreeMap<u64, Buffer>,
    pub(crate) modules: HashMap<usize, Module>,
    pub(crate) functions: HashMap<usize, Function>,
    pub(crate) streams: HashSet<usize>,
    pub(crate) events: HashMap<usize, Option<Instant>>,
    next: usize,
    /// The code of the fault that has ended the context, and whether a call has reported it.
    pub(crate) fault: Option<(Code, bool)>,
    pub(crate) fault_text: String,
    pub(crate) counters: Counters,
    pub(crate) calls: HashMap<String, u64>,
    pub(crate) fails: HashMap<String, (Code, u64)>,
    /// The number of resets, by which threads recognise that their contexts no longer exist.
    generation: u64,
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
    let mut state = State::new(1);
    if let Ok(text) = std::env::var("CUDA_EMULATOR") {
        state.settings(&text);
    }
    Mutex::new(state)
});

thread_local! {
    /// The stack of contexts of the thread, and the generation of the state to which they belong.
    static STACK: RefCell<(u64, Vec<usize>)> = const { RefCell::new((0, Vec::new())) };
}

/// Locks the state.
pub(crate) fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The conditions under which a call may proceed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Nothing,
    Init,
    Context,
    /// The call needs a context, and it waits for kernels, so that it reports their faults.
    Sync,
}

/// Makes a call of the driver: counts it, lets it fail if a test has asked for that, and checks its conditions.
pub(crate) fn call(name: &str, need: Need, body: impl FnOnce(&mut State) -> Res) -> Code {
    let mut state = lock();
    let made = state.calls.entry(name.to_string()).or_insert(0);
    *made += 1;
    let before = *made - 1;
    if let Some((code, after)) = state.fails.get(name)
        && before >= *after
    {
        return *code;
    }
    if need != Need::Nothing && !state.initialised {
        return 3;
    }
    if matches!(need, Need::Context | Need::Sync) {
        if state.current().is_none() {
            return 201;
        }
        if let Some((code, seen)) = &mut state.fault
            && (*seen || need == Need::Sync)
        {
            *seen = true;
            let code = *code;
            // Calls that free objects still do so, so that tests can see whether a program cleans up after a fault.
            if ["Free", "Destroy", "Unload"].iter().any(|word| name.contains(word)) {
                let _ = body(&mut state);
            }
            return code;
        }
    }
    body(&mut state).err().unwrap_or(0)
}

impl State {
    fn new(generation: u64) -> State {
        State {
            device: Device { count: 1, major: 9, minor: 0, sms: 132, shared: 232_448 },
            driver: 13000,
            memory_limit: 1 << 34,
            options: Options::default(),
            initialised: false,
            retained: HashMap::new(),
            pushed: 0,
            memory: BTreeMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            streams: HashSet::new(),
            events: HashMap::new(),
            next: 0x1_0000,
            fault: None,
            fault_text: String::new(),
            counters: Counters::default(),
            calls: HashMap::new(),
            fails: HashMap::new(),
            generation,
        }
    }

    /// Resets everything to the defaults, without the settings of the environment. All threads lose their contexts.
    pub(crate) fn reset(&mut self) {
        *self = State::new(self.generation + 1);
    }

    /// Returns a new handle.
    pub(crate) fn handle(&mut self) -> usize {
        self.next += 16;
        self.next
    }

    /// Returns the handle of the primary context of a device.
    pub(crate) fn context(device: i32) -> usize {
        0x1000 + device as usize * 16
    }

    /// Returns the device of a context, if the context is retained.
    pub(crate) fn device_of(&self, context: usize) -> Option<i32> {
        (0..self.device.count).find(|d| State::context(*d) == context && self.retained.contains_key(d))
    }

    /// Calls a function with the stack of contexts of the thread.
    pub(crate) fn stack<T>(&self, f: impl FnOnce(&mut Vec<usize>) -> T) -> T {
        STACK.with_borrow_mut(|(generation, stack)| {
            if *generation != self.generation {
                (*generation, *stack) = (self.generation, Vec::new());
            }
            f(stack)
        })
    }

    /// Returns the current context of the thread, if it is alive.
    pub(crate) fn current(&self) -> Option<usize> {
        self.stack(|s| s.last().copied()).filter(|c| self.device_of(*c).is_some())
    }

    /// Returns the allocation that contains all of the bytes.
    pub(crate) fn find(&self, at: u64, len: usize) -> Option<(u64, &Buffer)> {
        let (base, buffer) = self.memory.range(..=at).next_back()?;
        let offset = at - base;
        (offset < buffer.len() as u64 && buffer.len() as u64 - offset >= len as u64)
            .then_some((*base, buffer))
    }

    /// Returns the number of allocated bytes.
    pub(crate) fn used(&self) -> usize {
        self.memory.values().map(Buffer::len).sum()
    }

    /// Applies settings such as `name=1:2,name=3`, which correspond to the functions of `control`. A setting that is
    /// not understood is reported and ignored.
    fn settings(&mut self, text: &str) {
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (name, values) = part.split_once('=').unwrap_or((part, ""));
            let numbers: Vec<u64> = values.split(':').filter_map(|v| v.parse().ok()).collect();
            match (name, &numbers[..]) {
                ("device", [count, major, minor, sms, shared]) => {
                    let [count, major, minor, sms, shared] =
                        [count, major, minor, sms, shared].map(|v| *v as i32);
                    self.device = Device { count, major, minor, sms, shared };
                }
                ("driver", [v]) => self.driver = *v as i32,
                ("memory", [v]) => self.memory_limit = *v as usize,
                ("budget", [v]) => self.options.budget = *v,
                ("checks", [v]) => self.options.checks = *v as u32,
                ("schedule", [policy, rest @ ..]) => {
                    self.options.policy = policy_of(*policy as i32);
                    self.options.seed = rest.first().copied().unwrap_or(0);
                }
                ("fail", [code, after]) => {
                    let symbol = values.split(':').next().unwrap_or("");
                    self.fails.insert(symbol.to_string(), (*code as i32, *after));
                }
                _ => eprintln!("CUDA_EMULATOR: {part} is not understood"),
            }
        }
    }
}

/// Returns the policy with a number, see [`crate::control::emulator_schedule`].
pub(crate) fn policy_of(policy: i32) -> Policy {
    match policy {
        1 => Policy::Descending,
        2 => Policy::Random,
        3 => Policy::Interleaved,
        _ => Policy::Ascending,
    }
}
