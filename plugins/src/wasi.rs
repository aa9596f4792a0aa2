//! A WASI (0.2) as empty as can be, for guests whose toolchains import one whether they use it or not.
//!
//! Output goes nowhere, there are no arguments and no environment, clocks stand still and random numbers are the same in
//! every instance, so that decisions can be replayed. Everything else, files and network above all, traps when it is called.

use wasmtime::{
    StoreContextMut,
    component::{Component, Linker, Resource, ResourceType, Val},
};

use crate::call::Call;

/// The oldest version of the functions below; the linker takes it for later ones of 0.2 as well.
const VERSION: &str = "0.2.0";

/// Bytes that an output takes at once.
const ROOM: u64 = 1 << 16;

/// Resources that have no contents here.
struct Stream;
struct Terminal;
struct Failed;

/// Gives `component` its WASI.
pub(crate) fn link(linker: &mut Linker<Call>, component: &Component) -> wasmtime::Result<()> {
    environment(linker)?;
    streams(linker)?;
    clocks_and_random(linker)?;
    linker.define_unknown_imports_as_traps(component)
}

fn environment(linker: &mut Linker<Call>) -> wasmtime::Result<()> {
    let mut environment = linker.instance(&format!("wasi:cli/environment@{VERSION}"))?;
    environment.func_wrap("get-environment", |_, (): ()| Ok((Vec::<(String, String)>::new(),)))?;
    environment.func_wrap("get-arguments", |_, (): ()| Ok((Vec::<String>::new(),)))?;
    environment.func_wrap("initial-cwd", |_, (): ()| Ok((None::<String>,)))
}

fn streams(linker: &mut Linker<Call>) -> wasmtime::Result<()> {
    let mut error = linker.instance(&format!("wasi:io/error@{VERSION}"))?;
    error.resource("error", ResourceType::host::<Failed>(), |_, _| Ok(()))?;
    let mut streams = linker.instance(&format!("wasi:io/streams@{VERSION}"))?;
    streams.resource("output-stream", ResourceType::host::<Stream>(), |_, _| Ok(()))?;
    for (method, done) in [("check-write", Some(ROOM)), ("write", None), ("blocking-write-and-flush", None)]
        .into_iter()
        .chain([("flush", None), ("blocking-flush", None)])
    {
        // Untyped: the error of these functions is a variant that nothing here ever makes.
        streams.func_new(&format!("[method]output-stream.{method}"), move |_, _, _, results| {
            results[0] = Val::Result(Ok(done.map(|room| Box::new(Val::U64(room)))));
            Ok(())
        })?;
    }
    for name in ["stdout", "stderr"] {
        let mut output = linker.instance(&format!("wasi:cli/{name}@{VERSION}"))?;
        let get = format!("get-{name}");
        output.func_wrap(&get, |_, (): ()| Ok((Resource::<Stream>::new_own(0),)))?;
        let mut terminal = linker.instance(&format!("wasi:cli/terminal-{name}@{VERSION}"))?;
        let get = format!("get-terminal-{name}");
        terminal.func_wrap(&get, |_, (): ()| Ok((None::<Resource<Terminal>>,)))?;
    }
    Ok(())
}

fn clocks_and_random(linker: &mut Linker<Call>) -> wasmtime::Result<()> {
    let mut clock = linker.instance(&format!("wasi:clocks/monotonic-clock@{VERSION}"))?;
    clock.func_wrap("now", |_, (): ()| Ok((0u64,)))?;
    clock.func_wrap("resolution", |_, (): ()| Ok((1u64,)))?;
    let mut random = linker.instance(&format!("wasi:random/random@{VERSION}"))?;
    random.func_wrap("get-random-u64", |mut store: StoreContextMut<'_, Call>, (): ()| {
        Ok((next(store.data_mut()),))
    })?;
    random.func_wrap("get-random-bytes", |mut store: StoreContextMut<'_, Call>, (count,): (u64,)| {
        // More than a kilobyte at once is no seed.
        let count = usize::try_from(count).ok().filter(|count| *count <= 1024);
        let count = count.ok_or_else(|| wasmtime::format_err!("too many random bytes were asked for"))?;
        Ok(((0..count).map(|_| next(store.data_mut()) as u8).collect::<Vec<u8>>(),))
    })?;
    let mut seed = linker.instance(&format!("wasi:random/insecure-seed@{VERSION}"))?;
    seed.func_wrap("insecure-seed", |_, (): ()| Ok(((0u64, 0u64),)))
}

/// SplitMix64: fixed numbers, good enough to seed a hash map.
fn next(call: &mut Call) -> u64 {
    call.random = call.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = call.random;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
