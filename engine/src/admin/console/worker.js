// Runs a rule in the browser: one module, one event, by the contract of version 1. It has no fuel here; the page
// ends it when it takes too long. Whatever it answers is judged by the engine.

const code = (number) => ({ "-1": "it could not read its input", "-2": "it refuses its configuration", "-3": "it ran out of memory" })[number] ?? `it returned the code ${number}, which means nothing`;

function run({ wasm, config, event, index }) {
  const module = new WebAssembly.Module(wasm);
  const strange = WebAssembly.Module.imports(module).find((it) => it.module !== "hooksieve" || it.name !== "log");
  if (strange) throw new Error(strange.module.startsWith("wasi") ? "A WASI program is tried on the server; reactors run here." : `It imports ${strange.module}.${strange.name}, which rules may not.`);
  const log = [];
  let panic = null;
  let memory = null;
  const text = (at, length) => new TextDecoder().decode(new Uint8Array(memory.buffer, at >>> 0, length >>> 0));
  const instance = new WebAssembly.Instance(module, {
    hooksieve: { log(level, at, length) { if (level === 1) panic = text(at, length); else log.push(text(at, length)); } },
  });
  const { hooksieve_reserve: reserve, hooksieve_init: init, hooksieve_decide: decide } = instance.exports;
  memory = instance.exports.memory;
  if (!instance.exports.hooksieve_abi_1 || !reserve || !decide || !memory) throw new Error("It is no rule: it does not export what the contract says.");
  const place = (length) => {
    const at = reserve(length) >>> 0;
    if (at === 0 && length > 0) throw new Error(`It has no room for ${length} bytes of input.`);
    return at;
  };
  const answered = (returned) => {
    if (returned < 0n) throw new Error(code(String(returned)));
    return new Uint8Array(memory.buffer, Number(returned >> 32n), Number(returned & 0xffffffffn)).slice();
  };
  const began = performance.now();
  try {
    if (init) {
      const at = place(config.length);
      new Uint8Array(memory.buffer).set(config, at);
      const answer = answered(init(at, config.length));
      // An answer of init is the error that it has.
      if (answer.length > 0) return { answer, log, took: performance.now() - began, memory: memory.buffer.byteLength };
    }
    const rounded = (event.length + 3) & ~3;
    const at = place(rounded + index.length);
    const all = new Uint8Array(memory.buffer);
    all.set(event, at);
    all.set(index, at + rounded);
    const answer = answered(decide(at, event.length, at + rounded, index.length));
    return { answer, log, took: performance.now() - began, memory: memory.buffer.byteLength };
  } catch (error) {
    if (panic != null) throw new Error(`It panicked: ${panic}`);
    throw error instanceof WebAssembly.RuntimeError ? new Error(`It trapped: ${error.message}`) : error;
  }
}

onmessage = (message) => {
  try {
    postMessage({ ran: run(message.data) });
  } catch (error) {
    postMessage({ error: error.message });
  }
};
