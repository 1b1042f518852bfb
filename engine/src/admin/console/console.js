// The console: what /v1 answers, shown, and what /v1 can do, as buttons. Texts of events and rules are hostile:
// they become text nodes and nothing else.

const top_ = document.getElementById("top");
const main = document.getElementById("main");
const said = document.getElementById("said");

let who = null; // What /v1/whoami answers.
let tenants = []; // What /v1/tenants answers.
let feed = null; // The live feed of the page that is shown.
let shown = 0; // Counts pages, so that an answer that comes late does not end up on another one.

/** An element with its attributes, `on…` handlers and children; text becomes text. */
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child != null && child !== false));
  return made;
}

function say(text, bad = false) {
  said.textContent = text;
  said.className = bad ? "bad" : "";
  clearTimeout(say.timer);
  if (!bad) say.timer = setTimeout(() => (said.textContent = ""), 6000);
}

/** A call; what is wrong is thrown as the sentence that the engine says. */
async function call(method, path, body, kind = "application/json") {
  const headers = body === undefined ? {} : { "content-type": kind };
  if (body !== undefined && kind === "application/json") body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(path, { method, headers, body });
  } catch {
    throw new Error("The engine does not answer.");
  }
  if (response.status === 401 && who) {
    who = null;
    show();
    throw new Error("The token is not good any more: sign in again.");
  }
  const answer = await response.json().catch(() => null);
  if (!response.ok) throw new Error(answer?.detail ?? `The engine answered ${response.status}.`);
  return answer;
}

const get = (path) => call("GET", path);

/** A button that does something, says how it went, and shows the page again. */
function button(label, work, { kind = "", ask = null, done = null, again = true } = {}) {
  return el("button", {
    type: "button",
    class: kind,
    async onclick(event) {
      if (ask && !confirm(ask)) return;
      const pressed = event.currentTarget;
      pressed.disabled = true;
      try {
        const answer = await work();
        const text = typeof done === "function" ? done(answer) : done;
        if (again) await show();
        if (text) say(text);
      } catch (error) {
        say(error.message, true);
      } finally {
        pressed.disabled = false;
      }
    },
  }, label);
}

function table(columns, rows) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" },
    el("table", {},
      el("thead", {}, el("tr", {}, columns.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, rows.map((cells) =>
        el("tr", {}, cells.map((cell, at) => el("td", { "data-name": columns[at] || null }, cell ?? "")))))));
}

function facts(pairs) {
  const kept = pairs.filter(([, value]) => value != null && value !== "");
  return el("dl", {}, kept.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

const tones = {
  delivered: "good", notified: "good", live: "good", acknowledged: "good",
  failed: "bad", dead: "bad", held: "bad", quarantined: "bad",
  pending: "warn", waits: "warn", shadow: "warn", canary: "warn", disabled: "warn",
};
const tag = (word) => el("span", { class: `tag ${tones[word.split(" ")[0]] ?? ""}` }, word);
const time = (text) => el("time", { datetime: text, title: text }, new Date(text).toLocaleString());
const bytes = (count) => count < 1024 ? `${count} B` : count < 1048576 ? `${Math.round(count / 1024)} KiB` : count < 1073741824 ? `${(count / 1048576).toFixed(1)} MiB` : `${(count / 1073741824).toFixed(1)} GiB`;
const scopes = ["ingest-only", "read-only", "author", "tenant-admin", "operator"];
const may = (scope) => scopes.indexOf(who.scope) >= scopes.indexOf(scope);
const base = (tenant) => `/v1/tenants/${encodeURIComponent(tenant)}`;
const link = (tenant, ...rest) => `#/${[tenant, ...rest].map(encodeURIComponent).join("/")}`;

// ---- signing in ----

function signIn() {
  const token = el("input", { type: "password", id: "token", name: "token", autocomplete: "current-password", required: true, spellcheck: "false" });
  return [
    el("h1", {}, "Sign in"),
    el("form", {
      class: "fields card",
      async onsubmit(event) {
        event.preventDefault();
        try {
          await call("POST", "/console/session", { token: token.value.trim() });
          said.textContent = "";
          await start();
        } catch (error) {
          say(error.message, true);
          token.focus();
        }
      },
    },
      el("label", { for: "token" }, "Token"), token,
      el("p", { class: "soft" }, "An operator makes tokens with ", el("code", {}, "hooksieve tokens make"), "."),
      el("div", {}, el("button", { class: "main" }, "Sign in"))),
  ];
}

async function signOut() {
  await call("DELETE", "/console/session");
  who = null;
  location.hash = "";
  await show();
}

// ---- pages ----

const pages = {
  rules: ["Rules", rulesPage],
  upload: ["Upload", uploadPage],
  try: ["Try", tryPage],
  events: ["Events", eventsPage],
  deliveries: ["Deliveries", deliveriesPage],
  dead: ["Dead letters", deadPage],
  held: ["Held events", heldPage],
  sources: ["Sources", sourcesPage],
  channels: ["Channels", channelsPage],
  usage: ["Usage", usagePage],
  tokens: ["Tokens", tokensPage],
  audit: ["Changes", auditPage],
};

function tenantsPage() {
  return [
    el("h1", {}, "Tenants"),
    table(["Tenant", "Sources", "Channels"], tenants.map((it) => [
      el("a", { href: link(it.name, "rules") }, it.name), it.sources.join(", "), it.channels.join(", "),
    ])),
  ];
}

function roleTags(rule) {
  const tags = rule.quarantine ? [tag("quarantined")] : [];
  if (rule.in_file) tags.push(tag("in the tenant's file"));
  if (rule.live != null) tags.push(tag(`live ${rule.live}`));
  if (rule.shadow != null) tags.push(tag(`shadow ${rule.shadow}`));
  if (rule.canary) tags.push(tag(`canary ${rule.canary.version}, ${rule.canary.percent} %`));
  return tags.length ? tags.flatMap((it) => [it, " "]) : el("span", { class: "soft" }, "nothing");
}

async function rulesPage(tenant) {
  const rules = await get(`${base(tenant)}/rules`);
  return [
    el("h1", {}, "Rules"),
    rules.length
      ? table(["Rule", "Runs", "Versions"], rules.map((rule) => [
        el("a", { href: link(tenant, "rules", rule.name) }, rule.name),
        roleTags(rule), rule.in_file ? "" : String(rule.versions.length),
      ]))
      : el("p", {}, "There is no rule yet."),
    may("author") && el("p", {}, el("a", { href: link(tenant, "upload") }, "Upload a module")),
  ];
}

async function rulePage(tenant, name) {
  const path = `${base(tenant)}/rules/${encodeURIComponent(name)}`;
  const rule = await get(path);
  const shadow = rule.shadow == null ? null : await get(`${path}/shadow`);
  const minutes = await get(`${path}/minutes`);
  const stage = (version, as, percent) => call("POST", `${path}/stage`, { version, as, ...(percent && { percent }) });
  const promote = (version) => button(`Make version ${version} live`, () => call("POST", `${path}/promote`, { version }),
    { kind: "main", ask: `Have version ${version} decide from the next event on?`, done: `Version ${version} is live from the next event on.` });
  const canary = (version) => button("Canary …", () => {
    const percent = Number(prompt(`Of how many percent of all subjects should version ${version} decide?`, "5"));
    if (!percent) throw new Error("It was not changed: a canary needs a share, in percent.");
    return stage(version, "canary", percent);
  }, { done: `Version ${version} decides for its share of the subjects.` });
  const compared = el("div", { "aria-live": "polite" });
  const here = shown;
  function compare(it) {
    compared.replaceChildren(
      it.compared === 0
        ? el("p", {}, "It was not asked about any event yet, since ", time(it.since), ".")
        : el("p", {}, `Of ${it.compared} ${it.compared === 1 ? "event" : "events"} it would have decided ${it.differed} differently, since `, time(it.since), "."),
      it.differences.length > 0 ? table(["Event", "Live", "Shadow"], it.differences.map((it) => [
        el("a", { href: link(tenant, "events", it.event), title: it.event }, it.type || it.event), short(it.live), short(it.shadow),
      ])) : "");
  }
  if (shadow) {
    compare(shadow);
    const again = setInterval(async () => {
      if (here !== shown) return clearInterval(again);
      try {
        const now = await get(`${path}/shadow`);
        if (here === shown && now.compared !== shadow.compared) compare(Object.assign(shadow, now));
      } catch { clearInterval(again); }
    }, 2000);
  }
  return [
    el("h1", {}, "Rule ", name),
    el("p", {}, roleTags(rule)),
    rule.quarantine && el("section", {},
      el("h2", {}, "In quarantine"),
      el("p", {}, "It is not asked since ", time(rule.quarantine.since),
        `, when it had failed on ${rule.quarantine.failed} of its last ${rule.quarantine.of} events. Its events are held.`),
      el("pre", {}, rule.quarantine.error),
      may("author") && el("div", { class: "row" },
        button("Have it asked again", () => call("POST", `${path}/resume`), { kind: "main", done: "It is asked again." }))),
    minutes.length > 0 && el("section", {}, el("h2", {}, "The last hour"), bars(minutes)),
    may("author") && el("div", { class: "row" }, rule.in_file ? [] : [
      rule.before != null && button(`Roll back to version ${rule.before}`, () => call("POST", `${path}/rollback`),
        { kind: "main", ask: `Have version ${rule.before} decide again, in place of ${rule.live}?`, done: `Version ${rule.before} is live again.` }),
      (rule.shadow != null || rule.canary) && button("End shadow and canary", () => call("POST", `${path}/stop`), { done: "Ended." }),
      el("a", { href: link(tenant, "upload", name) }, "Upload a new version"),
    ], button("Release its held events", () => call("POST", `${path}/release`, {}), {
      done: (it) => `Released ${it.released}${it.failed ? `, failed again on ${it.failed}: ${it.error}` : ""}${it.next ? "; there are more" : ""}.`,
    }), !rule.in_file && button("Delete the rule", () => call("DELETE", path).then(() => (location.hash = link(tenant, "rules"))),
      { kind: "danger", ask: `Delete the rule ${name} with all its versions?`, done: "Deleted.", again: false })),
    shadow && el("section", {},
      el("h2", {}, `Version ${shadow.version} in the shadow`),
      compared,
      may("author") && promote(shadow.version)),
    rule.versions.map((version) => el("section", {},
      el("h2", {}, `Version ${version.version} `,
        version.version === rule.live && tag("live"), version.version === rule.shadow && tag("shadow"),
        version.version === rule.canary?.version && tag("canary")),
      facts([
        ["Made", el("span", {}, time(version.created), ` by ${version.by}`)],
        ["Events", version.events.join(", ")],
        ["Sources", version.sources.join(", ")],
        ["Channels", version.channels.join(", ")],
        ["When it fails", version.on_error],
        ["Module", el("code", {}, version.module)],
      ]),
      Object.keys(version.config).length > 0
        ? el("pre", {}, JSON.stringify(version.config, null, 2))
        : el("p", { class: "soft" }, "It has no configuration."),
      may("author") && el("div", { class: "row" },
        version.version !== rule.live && promote(version.version),
        el("a", { href: link(tenant, "try", name, version.version) }, "Try it"),
        version.version !== rule.live && version.version !== rule.shadow && button("Shadow", () => stage(version.version, "shadow"), { done: `Version ${version.version} is asked as well, without effect.` }),
        version.version !== rule.live && version.version !== rule.canary?.version && canary(version.version)))),
  ];
}

function short(decision) {
  const to = decision.channels.length ? `, to ${decision.channels.join(", ")}` : "";
  return el("span", {}, tag(decision.outcome), ` ${decision.reason}${to}`);
}

async function uploadPage(tenant, rule = "") {
  const about = tenants.find((it) => it.name === tenant);
  // A new version begins as the newest one is.
  const newest = rule ? (await get(`${base(tenant)}/rules/${encodeURIComponent(rule)}`)).versions[0] : undefined;
  const known = (await get(`${base(tenant)}/rules`)).map((it) => it.name);
  const report = el("div");
  const file = el("input", { type: "file", accept: ".wasm,application/wasm", onchange: () => take(file.files[0]) });
  const drop = el("label", {
    class: "drop",
    ondragover(event) { event.preventDefault(); drop.classList.add("over"); },
    ondragleave() { drop.classList.remove("over"); },
    ondrop(event) { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files[0]); },
  }, "Drop a module here, or choose its .wasm file", file);

  async function take(chosen) {
    if (!chosen) return;
    report.replaceChildren(el("p", { class: "soft" }, "It is checked and compiled …"));
    try {
      const module = await call("POST", `${base(tenant)}/modules`, await chosen.arrayBuffer(), "application/wasm");
      report.replaceChildren(...accepted(module, chosen.name));
    } catch (error) {
      report.replaceChildren(el("section", {}, el("h2", {}, "It was not taken"), el("p", { class: "bad" }, error.message)));
    }
  }

  function accepted(module, fileName) {
    // Beside what runs, a version begins in the shadow; a new rule has nothing to be compared with.
    let chosen = false;
    const suggest = () => { if (!chosen) role.value = known.includes(name.value) ? "shadow" : "live"; };
    const name = el("input", { id: "rule", required: true, oninput: suggest, pattern: "[a-z0-9][a-z0-9_\\-]{0,62}", value: rule || fileName.replace(/\.wasm$/, "").replace(/[^a-z0-9_-]/g, "-") });
    const events = el("input", { id: "events", required: true, value: newest?.events.join(", ") ?? "*" });
    const config = el("textarea", { id: "config", spellcheck: "false" }, JSON.stringify(newest?.config ?? {}, null, 2));
    const named = newest?.channels.length ? newest.channels : about.channels;
    const boxes = about.channels.map((it) => el("input", { type: "checkbox", name: "channel", value: it, checked: named.includes(it) }));
    const listens = about.sources.map((it) => el("input", { type: "checkbox", name: "source", value: it, checked: !newest?.sources.length || newest.sources.includes(it) }));
    const fails = el("select", { id: "fails" }, [["hold", "Hold it until somebody has looked"], ["pass", "Pass it on to the default channel"], ["drop", "Drop it"]]
      .map(([value, text]) => el("option", { value, selected: newest?.on_error === value }, text)));
    const percent = el("input", { id: "percent", type: "number", min: "0.01", max: "100", step: "0.01", value: "5" });
    const share = el("div", { class: "fields", hidden: true }, el("label", { for: "percent" }, "Of how many percent of all subjects it decides"), percent);
    const role = el("select", { id: "role", onchange() { chosen = true; share.hidden = role.value !== "canary"; } },
      el("option", { value: "shadow" }, "Shadow: asked as well, without effect"),
      el("option", { value: "canary" }, "Canary: it decides for a share of the subjects"),
      el("option", { value: "kept" }, "Nothing yet"),
      el("option", { value: "live" }, "Live: it decides from the next event on"));
    suggest();
    const form = el("form", {
      class: "fields",
      async onsubmit(event) {
        event.preventDefault();
        say("");
        try {
          const made = await call("POST", `${base(tenant)}/rules/${encodeURIComponent(name.value)}/versions`, {
            module: module.sha256,
            config: JSON.parse(config.value || "{}"),
            events: events.value.split(/[\s,]+/).filter(Boolean),
            channels: boxes.filter((it) => it.checked).map((it) => it.value),
            // All of them, and those to come, where all are checked.
            sources: listens.every((it) => it.checked) ? [] : listens.filter((it) => it.checked).map((it) => it.value),
            on_error: fails.value,
            as: role.value,
            ...(role.value === "canary" && { percent: Number(percent.value) }),
          });
          location.hash = link(tenant, "rules", made.name);
          say(`Version ${made.versions[0].version} of ${made.name} is made.`);
        } catch (error) {
          say(error instanceof SyntaxError ? `The configuration is no JSON: ${error.message}` : error.message, true);
        }
      },
    },
      el("label", { for: "rule" }, "Rule"), name,
      el("label", { for: "events" }, "Types of events, such as issues.opened or issues.*"), events,
      el("fieldset", {}, el("legend", {}, "Channels that it may use"), boxes.map((box) => el("label", {}, box, box.value))),
      listens.length > 1 && el("fieldset", {}, el("legend", {}, "Sources that it listens to"), listens.map((box) => el("label", {}, box, box.value))),
      el("label", { for: "fails" }, "What happens to an event that it fails on"), fails,
      el("label", { for: "config" }, "Configuration, as JSON"), config,
      el("label", { for: "role" }, "What it is used for"), role, share,
      el("div", {}, el("button", { class: "main" }, "Make the version")));
    return [
      el("section", {},
        el("h2", {}, "The module is accepted"),
        facts([
          ["Form", module.form], ["Size", bytes(module.size_bytes)], ["Machine code", bytes(module.code_bytes)], ["Memory", bytes(module.memory_bytes)],
          ["Checked and compiled in", module.compiled_ms == null ? null : `${module.compiled_ms} ms`],
          ["SHA-256", el("code", {}, module.sha256)],
        ])),
      el("section", {}, el("h2", {}, "A version of a rule"), form),
    ];
  }

  return [el("h1", {}, rule ? `A new version of ${rule}` : "Upload a module"), drop, report];
}

function eventRow(tenant, story) {
  const { event } = story;
  return [
    time(event.time),
    el("a", { href: link(tenant, "events", event.id) }, event.type),
    event.subject ?? "",
    !story.decided ? tag("waits") : !story.decisions.length ? el("span", { class: "soft" }, "no rule wants it")
      : story.decisions.flatMap((it) => [tag(it.outcome), ` ${it.rule}${it.reason ? `: ${it.reason}` : ""} `]),
    story.deliveries.flatMap((it) => [tag(it.state), ` ${it.channel} `]),
  ];
}

const OWN = "a file of one's own";
// The version that a rule is tried in where an address names none.
const NEWEST = "newest";
/** How long a rule may run in the browser before its thread is ended. */
const RUN_MS = 5000;

const unpacked = (text) => Uint8Array.from(atob(text), (it) => it.charCodeAt(0));
const packed = (bytes) => btoa(Array.from(bytes, (it) => String.fromCharCode(it)).join(""));

/** Runs a module on an event in a thread of its own, which is ended afterwards whatever it does. */
function runHere(wasm, input) {
  const worker = new Worker("/console/worker.js");
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`It ran for more than ${RUN_MS / 1000} s and was ended.`)), RUN_MS);
    const settle = (end, value) => { clearTimeout(late); end(value); };
    worker.onmessage = ({ data }) => data.error == null ? settle(resolve, data.ran) : settle(reject, new Error(data.error));
    worker.onerror = () => settle(reject, new Error("The thread that runs it did not start."));
    worker.postMessage({ wasm, event: unpacked(input.event), index: unpacked(input.index), config: unpacked(input.config) });
  }).finally(() => worker.terminate());
}

// Several of one type within a second are told apart by what became of them.
function recordedAs({ event, decisions }) {
  const became = decisions.map((it) => [it.outcome, it.reason].filter(Boolean).join(": "));
  return [event.type, event.subject, ...became, new Date(event.time).toLocaleString()].filter(Boolean).join(", ");
}

async function tryPage(tenant, rule = "", version = "", on = "") {
  const about = tenants.find((it) => it.name === tenant);
  const rules = (await get(`${base(tenant)}/rules`)).filter((it) => !it.in_file);
  const recorded = (await get(`${base(tenant)}/events?limit=50`)).items;
  if (on && !recorded.some((it) => it.event.id === on)) recorded.unshift(await get(`/v1/events/${encodeURIComponent(on)}`));
  const versions = rules.flatMap((it) => it.versions.map((version) => [it.name, version.version, version.module]));
  const begin = versions.find(([name, number]) => name === rule && (version === NEWEST || String(number) === version));
  const which = el("select", { id: "which", onchange: choose },
    versions.map(([name, number]) =>
      el("option", { value: `${name}/${number}`, selected: begin?.[0] === name && begin[1] === number }, `${name}, version ${number}`)),
    el("option", { value: OWN }, "A module of mine that is not uploaded"));
  const where = el("select", { id: "where" }, el("option", { value: "server" }, "On the server, with its limits"), el("option", { value: "here" }, "In this browser"));
  const file = el("input", { type: "file", id: "file", accept: ".wasm,application/wasm" });
  const config = el("textarea", { id: "config", spellcheck: "false" }, "{}");
  const own = el("div", { class: "fields" },
    el("label", { for: "file" }, "Its .wasm file, which stays in this browser"), file,
    el("label", { for: "config" }, "Configuration, as JSON"), config);
  const event = el("select", { id: "event", onchange: () => (pasted.hidden = event.value !== "") },
    el("option", { value: "" }, "One that is pasted below"),
    recorded.map((it, n) => el("option", { value: it.event.id, selected: on ? it.event.id === on : n === 0 }, recordedAs(it))));
  const type = el("input", { id: "type", placeholder: "issues" });
  const source = el("select", { id: "source" }, about.sources.map((it) => el("option", {}, it)));
  const payload = el("textarea", { id: "payload", spellcheck: "false" }, "{}");
  const pasted = el("div", { class: "fields", hidden: recorded.length > 0 },
    el("label", { for: "source" }, "Source that it would come in at"), source,
    el("label", { for: "type" }, "The sender's name of the event; a source of JSON knows it itself"), type,
    el("label", { for: "payload" }, "Payload, as JSON"), payload);
  const result = el("div", { "aria-live": "polite" });
  function choose() {
    const mine = which.value === OWN;
    own.hidden = !mine;
    if (mine) where.value = "here";
    where.disabled = mine;
  }
  choose();

  async function tried() {
    const on = event.value ? { event: event.value } : { payload: JSON.parse(payload.value), source: source.value, ...(type.value && { type: type.value }) };
    const mine = which.value === OWN;
    const [name, number] = which.value.split("/");
    const what = mine ? { config: JSON.parse(config.value || "{}") } : { rule: name, version: Number(number) };
    if (where.value === "server") return trial(await call("POST", `${base(tenant)}/try`, { ...what, ...on }));
    if (mine && !file.files[0]) throw new Error("Choose the module's .wasm file.");
    const module = versions.find((it) => it[0] === name && String(it[1]) === number)?.[2];
    const wasm = await (mine ? file.files[0].arrayBuffer() : fetched(`${base(tenant)}/modules/${module}`));
    const input = await call("POST", `${base(tenant)}/try/input`, { ...what, ...on });
    const ran = await runHere(wasm, input);
    // What it would lead to is the engine's to say.
    const judged = await call("POST", `${base(tenant)}/try`, { ...(!mine && what), ...on, answer: packed(ran.answer) });
    return trial({ ...judged, log: ran.log, memory_bytes: ran.memory, duration_us: Math.round(ran.took * 1000), fuel: null });
  }

  return [
    el("h1", {}, "Try a rule"),
    el("p", { class: "soft" }, "Nothing is stored and nothing is sent."),
    el("form", {
      class: "fields card",
      async onsubmit(submitted) {
        submitted.preventDefault();
        result.replaceChildren(el("p", { class: "soft" }, "It runs …"));
        try {
          result.replaceChildren(...(await tried()).flat().filter(Boolean));
        } catch (error) {
          const text = error instanceof SyntaxError ? `That is no JSON: ${error.message}` : error.message;
          result.replaceChildren(el("section", {}, el("h2", {}, "It could not be tried"), el("p", { class: "bad" }, text)));
        }
      },
    },
      el("label", { for: "which" }, "Version"), which, own,
      el("label", { for: "where" }, "Where it runs"), where,
      el("label", { for: "event" }, "Event"), event, pasted,
      el("div", {}, el("button", { class: "main" }, "Try it"))),
    result,
  ];
}

async function fetched(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error((await response.json().catch(() => null))?.detail ?? `The engine answered ${response.status}.`);
  return response.arrayBuffer();
}

/** A mail without its inline styles, which this page's policy does not let pass. Its texts have no bare quotes. */
const unstyled = (html) => html.replaceAll(/ style="[^"]*"/g, "");

/** What a trial came to; a mail is shown in a frame in which nothing runs. */
function trial(it) {
  return [
    el("section", {},
      el("h2", {}, "The event would have been ", tag(it.outcome)),
      el("p", { class: it.error ? "bad" : "" }, it.reason ?? it.error ?? ""),
      !it.subscribed && el("p", { class: "warn" }, "The version has not subscribed to such events, so it would not have been asked."),
      facts([
        ["Event", `${it.type}${it.subject ? `, ${it.subject}` : ""}`],
        ["Used", `${it.fuel == null ? "" : `${it.fuel.toLocaleString()} fuel, `}${bytes(it.memory_bytes)}, ${it.duration_us.toLocaleString()} µs${it.fuel == null ? ", in this browser" : ""}`],
      ]),
      it.log.length > 0 && el("pre", {}, it.log.join("\n"))),
    ...it.actions.map((action) => el("section", {},
      el("h2", {}, `${action.channel} `, tag(action.kind)),
      action.timing && el("pre", {}, JSON.stringify(action.timing, null, 2)),
      action.preview?.html && el("iframe", { sandbox: "", title: `The mail to ${action.channel}`, srcdoc: unstyled(action.preview.html) }),
      action.preview?.text && el("pre", {}, action.preview.text),
      CHATS.includes(action.kind) && action.payload.message && bubble(action.payload.message, it),
      el("details", { open: !action.payload.message }, el("summary", {}, "As JSON"),
        el("pre", {}, JSON.stringify(action.preview?.json ?? action.payload, null, 2))))),
  ];
}

const CHATS = ["slack", "discord", "lark", "teams"];

/** A message about as a chat shows it; each has its own looks. All of it is plain text. */
function bubble(message, { reason, type }) {
  // An address of another kind is not for following, here as in the chats.
  const url = /^https?:/i.test(message.link?.url ?? "") ? message.link.url : null;
  return el("div", { class: "bubble" },
    el("strong", {}, message.title),
    message.text && el("p", {}, message.text),
    message.fields?.length > 0 && facts(message.fields.map((it) => [it.name, it.value])),
    url && el("p", {}, el("a", { href: url, rel: "noreferrer noopener", target: "_blank" }, message.link.label ?? url)),
    el("p", { class: "soft" }, [reason, type].filter(Boolean).join(" · ")));
}

async function eventsPage(tenant) {
  const filter = { type: "", outcome: "" };
  const list = el("div");
  const live = el("input", { type: "checkbox", id: "live", checked: true, onchange: follow });
  let rows = [];
  let next = null;
  let newest = "00000000-0000-0000-0000-000000000000";
  const here = shown;

  function draw() {
    list.replaceChildren(
      rows.length ? table(["Time", "Type", "Subject", "Became", "Deliveries"], rows.map((it) => eventRow(tenant, it))) : el("p", {}, "There is no such event."),
      next ? button("Older ones", () => load(next), { again: false }) : "");
  }
  async function load(after = null) {
    const query = new URLSearchParams({ limit: "50" });
    for (const [key, value] of Object.entries({ ...filter, after })) if (value) query.set(key, value);
    const page = await get(`${base(tenant)}/events?${query}`);
    if (!after) newest = page.items.find((it) => it.decided)?.event.id ?? newest;
    rows = after ? rows.concat(page.items) : page.items;
    next = page.next;
    draw();
  }
  function follow() {
    feed?.close();
    if (!live.checked) return;
    // What came in since the list was read is not to be missed.
    const query = new URLSearchParams({ since: newest });
    for (const [key, value] of Object.entries(filter)) if (value) query.set(key, value);
    feed = new EventSource(`${base(tenant)}/events/feed?${query}`);
    feed.onmessage = (message) => {
      if (here !== shown) return feed.close();
      newest = message.lastEventId;
      const story = JSON.parse(message.data);
      const at = rows.findIndex((it) => it.event.id === story.event.id);
      if (at < 0) rows.unshift(story);
      else rows[at] = story;
      rows.length = Math.min(rows.length, 500);
      draw();
    };
    feed.onerror = () => say("The live feed is interrupted; it is tried again.");
  }
  const set = (key) => async (event) => {
    filter[key] = event.target.value.trim();
    try { await load(); follow(); } catch (error) { say(error.message, true); }
  };
  await load();
  if (here === shown) follow();
  return [
    el("h1", {}, "Events"),
    el("div", { class: "row" },
      el("label", {}, "Type", el("input", { placeholder: "issues.*", onchange: set("type") })),
      el("label", {}, "Became", el("select", { onchange: set("outcome") },
        el("option", { value: "" }, "anything"), ["notified", "dropped", "failed"].map((it) => el("option", {}, it)))),
      el("label", { for: "live" }, "Live", live)),
    list,
  ];
}

function attempts(delivery) {
  return table(["Attempt", "Took", "Status", "What came of it"], delivery.attempts.map((it) => [
    time(it.at), `${it.duration_ms} ms`, it.status == null ? "" : String(it.status),
    [it.error ?? "ok", it.ambiguous ? "; the receiver may have it all the same" : "", it.answer ? `; it answered: ${it.answer}` : "", it.refused.length ? `; refused: ${it.refused.join(", ")}` : ""].join(""),
  ]));
}

function deliveryCard(tenant, it) {
  return el("section", {},
    el("h2", {}, `${it.channel} `, tag(it.state)),
    facts([
      ["Id", el("span", { class: "id" }, it.id)], ["At", time(it.at)], ["Rule", it.rule], ["Why", it.reason],
      ["Event", el("a", { href: link(tenant, "events", it.event) }, it.type)],
      ["Belongs to", it.other ?? it.redrive_of ?? it.fallback_of ?? it.escalation_of],
    ]),
    it.attempts.length > 0 && attempts(it),
    it.payload && el("pre", {}, JSON.stringify(it.payload, null, 2)));
}

async function eventPage(tenant, id) {
  const story = await get(`/v1/events/${encodeURIComponent(id)}?data=true`);
  const { event } = story;
  // What a version in the shadow would have decided is no part of the story.
  const rules = await get(`${base(tenant)}/rules`);
  const shadows = new Map();
  for (const rule of rules.filter((it) => it.shadow != null && story.decisions.some((d) => d.rule === it.name))) {
    const shadow = await get(`${base(tenant)}/rules/${encodeURIComponent(rule.name)}/shadow`);
    const other = shadow.differences.find((it) => it.event === event.id);
    if (other) shadows.set(rule.name, el("p", {}, `Version ${shadow.version} in the shadow: `, short(other.shadow)));
  }
  return [
    el("h1", {}, event.type, " ", !story.decided && tag("waits")),
    facts([
      ["Id", el("span", { class: "id" }, event.id)], ["Time", time(event.time)], ["Subject", event.subject],
      ["Source", event.source], ["Verified", event.verified], ["Sender's id", event.sender_id],
    ]),
    story.decisions.map((it) => el("section", {},
      el("h2", {}, `Rule ${it.rule}${it.version ? `, version ${it.version}` : ""} `, tag(it.outcome), it.then ? [" ", tag(it.then)] : ""),
      el("p", { class: it.error ? "bad" : "" }, it.reason ?? it.error ?? ""),
      facts([["Used", `${it.fuel.toLocaleString()} fuel, ${bytes(it.memory_bytes)}, ${it.duration_us} µs`]]),
      shadows.get(it.rule),
      it.log.length > 0 && el("pre", {}, it.log.join("\n")))),
    may("author") && el("p", {}, el("a", { href: link(tenant, "try", story.decisions[0]?.rule ?? "-", NEWEST, event.id) }, "Try a rule on this event")),
    story.deliveries.map((it) => deliveryCard(tenant, it)),
    el("h2", {}, "Data"), el("pre", { tabindex: "0" }, JSON.stringify(event.data, null, 2)),
    el("details", {}, el("summary", {}, "Headers"), el("pre", {}, JSON.stringify(event.headers, null, 2))),
  ];
}

async function deliveriesPage(tenant) {
  const page = await get(`${base(tenant)}/deliveries?limit=100`);
  return [
    el("h1", {}, "Deliveries of the newest events"),
    page.items.length
      ? table(["At", "Channel", "State", "Event", "Rule", "Attempts"], page.items.map((it) => [
        time(it.at), it.channel, tag(it.state), el("a", { href: link(tenant, "events", it.event) }, it.type), it.rule, String(it.attempts.length),
      ]))
      : el("p", {}, "There is no delivery."),
  ];
}

async function deadPage(tenant) {
  const page = await get(`/v1/dead?tenant=${encodeURIComponent(tenant)}&limit=100`);
  const path = (it) => `/v1/dead/${encodeURIComponent(it.id)}`;
  return [
    el("h1", {}, "Dead letters"),
    page.items.length === 0 && el("p", {}, "No delivery was given up."),
    page.items.map((it) => el("div", {}, deliveryCard(tenant, it),
      may("author") && el("div", { class: "row" },
        button("Redrive", () => call("POST", `${path(it)}/redrive`), { kind: "main", done: (new_) => `It goes out again as ${new_.id}.` }),
        button("Purge", () => call("DELETE", path(it)), { kind: "danger", done: "It is no dead letter any more." })))),
    page.next && el("p", { class: "soft" }, "There are more; they are shown when these are gone."),
  ];
}

async function heldPage(tenant) {
  const { items: held } = await get(`/v1/held?limit=200&tenant=${encodeURIComponent(tenant)}`);
  const path = (it) => `/v1/held/${[tenant, it.event, it.rule].map(encodeURIComponent).join("/")}`;
  return [
    el("h1", {}, "Held events"),
    held.length
      ? table(["Since", "Event", "Rule", "Why", ""], held.map((it) => [
        time(it.since), el("a", { href: link(tenant, "events", it.event) }, it.event), it.rule, it.error,
        may("author") && el("div", { class: "row" },
          button("Release", () => call("POST", `${path(it)}/release`), { kind: "main", done: (made) => `The rule decided: ${made.outcome}.` }),
          button("Drop", () => call("DELETE", path(it)), { kind: "danger", done: "Dropped." })),
      ]))
      : el("p", {}, "No event is held."),
  ];
}

/** What a tenant's sources and channels have in common: a list, and a form that sets one up. */
async function settings(tenant, what, example, more) {
  const path = `${base(tenant)}/${what}s`;
  const all = await get(path);
  const name = el("input", { id: "name", required: true, pattern: "[a-z0-9][a-z0-9_\\-]{0,62}" });
  const text = el("textarea", { id: "settings", required: true, spellcheck: "false" }, JSON.stringify(example, null, 2));
  const remove = (it) => button("Remove", () => call("DELETE", `${path}/${encodeURIComponent(it.name)}`),
    { kind: "danger", ask: `Remove the ${what} ${it.name}?`, done: "Removed." });
  return [
    all.length
      ? table([what[0].toUpperCase() + what.slice(1), "Kind", "Settings", "Secrets", ""], all.map((it) => [
        it.name, it.kind,
        it.in_file ? el("span", { class: "soft" }, "in the tenant's file") : el("code", {}, JSON.stringify(it.settings)),
        it.secrets.join(", "),
        may("tenant-admin") && el("div", { class: "row" }, more(it), !it.in_file && remove(it)),
      ]))
      : el("p", {}, `There is no ${what} yet.`),
    may("tenant-admin") && el("section", {}, el("h2", {}, `Set up a ${what}`),
      el("form", {
        class: "fields",
        async onsubmit(event) {
          event.preventDefault();
          try {
            const set = await call("PUT", `${path}/${encodeURIComponent(name.value)}`, JSON.parse(text.value));
            tenants = await get("/v1/tenants");
            await show();
            say(`The ${what} ${set.name} is set.`);
          } catch (error) {
            say(error instanceof SyntaxError ? `The settings are no JSON: ${error.message}` : error.message, true);
          }
        },
      },
        el("label", { for: "name" }, "Name; one that is there is replaced"), name,
        el("label", { for: "settings" }, "Settings, as JSON; secrets are never shown again"), text,
        el("div", {}, el("button", { class: "main" }, "Set it up")))),
  ];
}

async function sourcesPage(tenant) {
  return [
    el("h1", {}, "Sources"),
    await settings(tenant, "source", { kind: "github", secret: "" }, () => null),
    el("p", { class: "soft" }, "Events of a source go to ", el("code", {}, `${location.origin}/in/${tenant}/SOURCE`), "."),
  ];
}

async function channelsPage(tenant) {
  const path = (it) => `/v1/channels/${encodeURIComponent(tenant)}/${encodeURIComponent(it)}`;
  const outcome = (test) => test.delivered
    ? `It arrived${test.status ? ` (${test.status})` : ""}, in ${test.duration_ms} ms.`
    : `It did not arrive: ${test.error}`;
  return [
    el("h1", {}, "Channels"),
    await settings(tenant, "channel", { kind: "slack", url: "" }, (it) => [
      button("Send a test", () => call("POST", `${path(it.name)}/test`).then((test) => {
        if (!test.delivered) throw new Error(outcome(test));
        return test;
      }), { kind: "main", done: outcome, again: false }),
      button("Enable", () => call("POST", `${path(it.name)}/enable`), { done: (it) => it.was_disabled ? "It is enabled again." : "It was not disabled.", again: false })]),
    el("p", { class: "soft" }, "A test is one real message."),
  ];
}

/** The last hour, minute by minute: what was notified, dropped and failed, and what a decision burned. The table says the same. */
function bars(minutes) {
  const total = (it) => it.notified + it.dropped + it.failed;
  const mean = (it) => Math.round(it.fuel / Math.max(1, total(it)));
  const at = (it) => Math.floor(new Date(it.at) / 60_000);
  const known = new Map(minutes.map((it) => [at(it), it]));
  const now = Math.floor(Date.now() / 60_000);
  const slots = Array.from({ length: 60 }, (_, n) => known.get(now - 59 + n));
  const most = Math.max(1, ...minutes.map(total));
  const highest = Math.max(1, ...minutes.map(mean));
  const part = (name, share) => {
    const made = el("span", { class: name });
    made.style.height = `${100 * share}%`;
    return made;
  };
  const chart = (name, of) => el("div", { class: `bars ${name}`, "aria-hidden": "true" }, slots.map((it) => it ? of(it) : el("div")));
  const clock = (minute) => new Date(minute * 60_000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const key = (name, text) => el("span", {}, el("i", { class: name }), ` ${text} `);
  return [
    chart("", (it) =>
      el("div", { title: `${clock(at(it))}: ${it.notified} notified, ${it.dropped} dropped, ${it.failed} failed` },
        part("bad", it.failed / most), part("soft", it.dropped / most), part("good", it.notified / most))),
    chart("low", (it) => el("div", { title: `${clock(at(it))}: ${mean(it).toLocaleString()} fuel` }, part("mark", mean(it) / highest))),
    el("p", { class: "axis soft", "aria-hidden": "true" }, el("span", {}, clock(now - 59)),
      el("span", {}, key("good", "notified"), key("soft", "dropped"), key("bad", "failed"), key("mark", "fuel of a decision")), el("span", {}, clock(now))),
    el("details", {}, el("summary", {}, `Decisions in each minute, at most ${most.toLocaleString()}; fuel of a decision, at most ${highest.toLocaleString()}`),
      table(["Minute", "Notified", "Dropped", "Failed", "Fuel", "Fuel of one"], minutes.toReversed().map((it) =>
        [time(it.at), it.notified, it.dropped, it.failed, it.fuel, mean(it)].map((cell) => typeof cell === "number" ? cell.toLocaleString() : cell)))),
  ];
}

async function usagePage(tenant) {
  const usage = await get(`${base(tenant)}/usage`);
  const row = (name, { used, max }, write = (it) => Math.round(it * 10) / 10) => {
    const share = max ? `${Math.round((100 * used) / max)} %` : "";
    return [name, write(used), max ? write(max) : "no quota", share];
  };
  const cells = (it) => String(it.toLocaleString?.() ?? it);
  return [
    el("h1", {}, "Usage"),
    usage.minutes.length ? el("section", {}, el("h2", {}, "The last hour"), bars(usage.minutes)) : el("p", {}, "Nothing happened in the last hour."),
    table(["What", "Used", "At most", "Share"], [
      row("Events a second, in the last minute", usage.events_per_s),
      row("Fuel a second, in the last minute", usage.fuel_per_s),
      row("Deliveries a second, in the last minute", usage.deliveries_per_s),
      row("Rules", usage.rules), row("Modules", usage.modules_bytes, bytes), row("Their machine code", usage.code_bytes, bytes), row("Sources", usage.sources),
      row("Channels", usage.channels), row("Tokens", usage.tokens),
      row("Stored, its events and what became of them", usage.stored_bytes, bytes),
    ].map((it) => it.map(cells))),
  ];
}

async function tokensPage(tenant) {
  const tokens = await get(`/v1/tokens?tenant=${encodeURIComponent(tenant)}`);
  const made = el("div");
  const label = el("input", { id: "label", required: true, maxlength: "100" });
  const scope = el("select", { id: "scope" }, ["read-only", "ingest-only", "author", "tenant-admin"].map((it) => el("option", {}, it)));
  return [
    el("h1", {}, "Tokens"),
    table(["Id", "Scope", "What for", "Made", "Expires", ""], tokens.map((it) => [
      el("span", { class: "id" }, it.id), it.scope, it.label, time(it.created), it.expires ? time(it.expires) : "never",
      button("Revoke", () => call("DELETE", `/v1/tokens/${encodeURIComponent(it.id)}`), { kind: "danger", ask: `Revoke the token ${it.id}?`, done: "Revoked." }),
    ])),
    el("section", {}, el("h2", {}, "A new token"),
      el("form", {
        class: "fields",
        async onsubmit(event) {
          event.preventDefault();
          try {
            const token = await call("POST", "/v1/tokens", { tenant, scope: scope.value, label: label.value });
            made.replaceChildren(el("p", {}, "It is shown this once:"), el("pre", {}, token.token));
          } catch (error) { say(error.message, true); }
        },
      },
        el("label", { for: "label" }, "What it is for"), label,
        el("label", { for: "scope" }, "Scope"), scope,
        el("div", {}, el("button", { class: "main" }, "Make it"))),
      made),
  ];
}

async function auditPage(tenant) {
  const changes = await get(`${base(tenant)}/audit`);
  return [
    el("h1", {}, "Changes"),
    changes.length
      ? table(["When", "Who", "What", "Of", "Live before", "Live after"], changes.map((it) => [
        time(it.at), it.who, it.version ? `${it.what} ${it.version}` : it.what, it.thing ? `${it.thing} ${it.rule}` : it.rule, it.from == null ? "" : String(it.from), it.to == null ? "" : String(it.to),
      ]))
      : el("p", {}, "Nothing was changed yet."),
  ];
}

// ---- the frame ----

function header(tenant, page) {
  if (!who) return [el("strong", {}, "Hooksieve")];
  const needs = { upload: "author", try: "author", tokens: "tenant-admin" };
  const nav = tenant && el("nav", { "aria-label": "Pages" }, Object.entries(pages)
    .filter(([key]) => may(needs[key] ?? "read-only"))
    .map(([key, [name]]) => el("a", { href: link(tenant, key), "aria-current": key === page ? "page" : null }, name)));
  const choice = tenants.length > 1 && el("label", {}, "Tenant ", el("select", {
    onchange: (event) => (location.hash = event.target.value ? link(event.target.value, page ?? "rules") : ""),
  }, el("option", { value: "" }, "all"), tenants.map((it) => el("option", { value: it.name, selected: it.name === tenant }, it.name))));
  return [
    el("strong", {}, "Hooksieve"), choice, nav ?? el("nav"),
    el("span", { class: "soft" }, who.tenant ? `${who.scope} of ${who.tenant}` : who.scope),
    button("Sign out", signOut, { again: false }),
  ];
}

async function show() {
  const here = ++shown;
  feed?.close();
  feed = null;
  if (!who) {
    top_.replaceChildren(...header());
    main.replaceChildren(...signIn());
    document.getElementById("token").focus();
    return;
  }
  let [tenant, page, ...rest] = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decodeURIComponent);
  if (!tenant && tenants.length === 1) tenant = tenants[0].name;
  const known = tenants.some((it) => it.name === tenant);
  page = page && Object.hasOwn(pages, page) ? page : "rules";
  top_.replaceChildren(...header(known && tenant, known && page).filter(Boolean));
  let content;
  try {
    if (!tenant) content = tenantsPage();
    else if (!known) content = [el("h1", {}, "There is no such tenant")];
    else if (page === "rules" && rest[0]) content = await rulePage(tenant, rest[0]);
    else if (page === "events" && rest[0]) content = await eventPage(tenant, rest[0]);
    else content = await pages[page][1](tenant, ...rest);
  } catch (error) {
    content = [el("h1", {}, "That did not work"), el("p", { class: "bad" }, error.message)];
  }
  if (here !== shown) return;
  main.replaceChildren(...content.flat().filter(Boolean));
  document.title = `${main.querySelector("h1")?.textContent ?? "Console"} · Hooksieve`;
}

async function start() {
  try {
    who = await get("/v1/whoami");
    tenants = await get("/v1/tenants");
  } catch {
    who = null;
  }
  await show();
}

window.addEventListener("hashchange", () => {
  said.textContent = "";
  show().then(() => main.focus());
});
start();
