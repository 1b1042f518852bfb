// Goes through every flow of the console in a real browser, as a person would, and looks for what a program can
// see: that hostile texts stay texts, that nothing is asked of other sites, that axe-core finds nothing serious.
// Usage: node console.js BASE_URL TOKEN WASM FOLDER; pictures of every page are left in FOLDER.
import { chromium } from "playwright-core";
import { createRequire } from "node:module";
import assert from "node:assert/strict";

const [base, token, wasm, folder] = process.argv.slice(2);
const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const HOSTILE = `<img src=x onerror="document.title='taken'"><b>bold</b>`;

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const context = await browser.newContext({ bypassCSP: false, viewport: { width: 1200, height: 800 } });
const page = await context.newPage();
page.setDefaultTimeout(15_000);
const complaints = [];
page.on("pageerror", (error) => complaints.push(`script: ${error.message}`));
page.on("console", (message) => {
  // What the browser says of an answer that is an error is the engine's business.
  if (message.type() === "error" && !message.text().includes("the server responded with a status")) complaints.push(`console: ${message.text()}`);
});
page.on("request", (request) => {
  if (!request.url().startsWith(base)) complaints.push(`asked elsewhere: ${request.url()}`);
});
page.on("dialog", (dialog) => (dialog.type() === "prompt" ? dialog.accept("50") : dialog.accept()));

const send = async (event) => {
  const answer = await fetch(`${base}/in/acme/open`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(event) });
  assert.equal(answer.status, 202);
  return (await answer.json()).id;
};
const heading = (text) => page.getByRole("heading", { level: 1, name: text }).waitFor();
const said = async (text) => page.getByRole("status").filter({ hasText: text }).waitFor();
const open = async (name, title = name) => {
  await page.getByRole("navigation", { name: "Pages" }).getByRole("link", { name, exact: true }).click();
  await heading(title);
};
let looked = 0;
/** A picture in each look, and what axe-core has to say. */
async function look(name) {
  for (const [look, scheme, width] of [["light", "light", 1200], ["dark", "dark", 1200], ["phone", "light", 390]]) {
    await page.emulateMedia({ colorScheme: scheme });
    await page.setViewportSize({ width, height: 800 });
    await page.screenshot({ path: `${folder}/${name}-${look}.png`, fullPage: true });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(wide <= 0, `${name} is ${wide} px too wide on ${look}`);
    const found = await page.evaluate(async () => (await window.axe.run()).violations
      .filter((it) => ["serious", "critical"].includes(it.impact))
      .map((it) => `${it.id}: ${it.help}: ${it.nodes.map((node) => node.html).join(" | ")}`));
    assert.deepEqual(found, [], `${name}, ${look}`);
  }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 1200, height: 800 });
  looked += 1;
}
// Its own world is not bound by the page's policy, so that the policy stays as it is.
await page.addInitScript({ path: axe });

await page.goto(`${base}/console`);
await heading("Sign in");
await look("sign-in");
await page.getByLabel("Token").fill("hooksieve_0_0");
await page.getByRole("button", { name: "Sign in" }).click();
await said("this token is not good here");
await page.getByLabel("Token").fill(token);
await page.keyboard.press("Enter");
await heading("Rules");
await look("rules");
const cookies = await context.cookies();
assert.deepEqual(cookies.map((it) => [it.httpOnly, it.sameSite]), [[true, "Strict"]]);
assert.equal(await page.evaluate(() => document.cookie), "");

// A rule is uploaded and made live.
await open("Upload", "Upload a module");
const file = page.locator("input[type=file]");
await file.setInputFiles({ name: "broken.wasm", mimeType: "application/wasm", buffer: Buffer.from("no module") });
await page.getByRole("heading", { name: "It was not taken" }).waitFor();
await file.setInputFiles(wasm);
await page.getByRole("heading", { name: "The module is accepted" }).waitFor();
await page.getByLabel("Rule", { exact: true }).fill("own");
await page.getByLabel("Configuration").fill("{");
await page.getByRole("button", { name: "Make the version" }).click();
await said("The configuration is no JSON");
await page.getByLabel("Configuration").fill('{"greeting": "one"}');
await page.getByLabel("What it is used for").selectOption("live");
await look("upload");
await page.getByRole("button", { name: "Make the version" }).click();
await heading("Rule own");
await page.getByText("live 1").waitFor();

// What comes in is seen at once, and hostile texts are texts.
await open("Events");
await page.getByLabel("Live").check();
const first = await send({ do: "post", subject: HOSTILE, payload: { text: HOSTILE } });
const row = page.getByRole("row").filter({ hasText: HOSTILE });
await row.waitFor();
await look("events");
await row.getByRole("link").click();
await page.getByRole("heading", { name: "Rule own, version 1" }).waitFor();
await page.getByText(first).waitFor();
assert.equal(await page.locator("main img, main b").count(), 0);
assert.ok(!(await page.title()).includes("taken"));
await look("event");

// A version is tried on an event that came in, and on one that is pasted.
await page.getByRole("link", { name: "Try a rule on this event" }).click();
await heading("Try a rule");
assert.equal(await page.getByLabel("Event", { exact: true }).inputValue(), first);
assert.equal(await page.getByLabel("Version", { exact: true }).inputValue(), "own/1");
await page.getByRole("button", { name: "Try it" }).click();
await page.getByRole("heading", { name: "The event would have been notified" }).waitFor();
await page.getByLabel("Event", { exact: true }).selectOption("");
await page.getByLabel("Payload").fill("{");
await page.getByRole("button", { name: "Try it" }).click();
await page.getByText("That is no JSON").waitFor();
await page.getByLabel("Payload").fill(JSON.stringify({ do: "notify", channel: "mail", title: HOSTILE, text: HOSTILE }));
await page.getByRole("button", { name: "Try it" }).click();
await page.frameLocator("iframe").getByText(HOSTILE).first().waitFor();
assert.equal(await page.locator("main img, main b").count(), 0);
await look("try");
await page.getByLabel("Payload").fill(JSON.stringify({ do: "notify", channel: "chat", title: HOSTILE, text: HOSTILE, link: "https://a.example/" }));
await page.getByRole("button", { name: "Try it" }).click();
await page.locator(".bubble").getByText(HOSTILE).first().waitFor();
await page.locator(".bubble").getByRole("link", { name: "https://a.example/" }).waitFor();
assert.equal(await page.locator("main img, main b").count(), 0);
await look("try-chat");
await page.getByLabel("Payload").fill(JSON.stringify({ do: "notify", channel: "mail", title: HOSTILE, text: HOSTILE }));
// The same in the browser itself; then a module that nobody has uploaded, with a configuration, and one that
// never ends, which is ended.
const where = page.getByLabel("Where it runs");
await where.selectOption("here");
await page.getByRole("button", { name: "Try it" }).click();
await page.getByText("in this browser", { exact: false }).filter({ hasText: "µs" }).waitFor();
await page.frameLocator("iframe").getByText(HOSTILE).first().waitFor();
await page.getByLabel("Event", { exact: true }).selectOption(first);
await page.getByLabel("Version", { exact: true }).selectOption({ label: "A module of mine that is not uploaded" });
await page.getByRole("button", { name: "Try it" }).click();
await page.getByText("Choose the module's .wasm file.").waitFor();
await page.getByLabel("Its .wasm file").setInputFiles(wasm);
await page.getByLabel("Configuration").fill('{"greeting": "from here"}');
await page.getByRole("button", { name: "Try it" }).click();
await page.getByText('"from here"').first().waitFor();
await look("try-here");
await page.getByLabel("Event", { exact: true }).selectOption("");
for (const [payload, expected] of [[{ do: "panic", code: 7 }, "It panicked: asked to panic: 7"], [{ do: "error", message: HOSTILE }, HOSTILE]]) {
  await page.getByLabel("Payload").fill(JSON.stringify(payload));
  await page.getByRole("button", { name: "Try it" }).click();
  await page.getByText(expected).last().waitFor();
}
const endless = Buffer.from(process.argv[6] ?? "", "base64");
await page.getByLabel("Its .wasm file").setInputFiles({ name: "endless.wasm", mimeType: "application/wasm", buffer: endless });
await page.getByRole("button", { name: "Try it" }).click();
await page.getByText("It ran for more than 5 s and was ended.").waitFor();
assert.equal(await page.locator("main img, main b").count(), 0);

// A second version in the shadow, then live, then back.
await open("Upload", "Upload a module");
await file.setInputFiles(wasm);
await page.getByLabel("Rule", { exact: true }).fill("own");
await page.getByLabel("Configuration").fill('{"greeting": "two", "broken": true}');
await page.getByRole("button", { name: "Make the version" }).click();
await page.getByText("shadow 2").first().waitFor();
await send({ do: "post", subject: "second", payload: 1 });
// The count follows.
await page.getByText("Of 1 event it would have decided 1 differently").waitFor();
await look("rule");
await page.getByRole("button", { name: "Canary …" }).click();
await page.getByText("canary 2, 50 %").waitFor();
await page.getByRole("button", { name: "Make version 2 live" }).click();
await page.getByText("live 2").waitFor();
const held = await send({ do: "post", subject: "held", payload: 1 });
await page.getByRole("button", { name: "Roll back to version 1" }).click();
await page.getByText("live 1").waitFor();
// A new version begins with what the newest one has.
await page.getByRole("link", { name: "Upload a new version" }).click();
await page.locator("input[type=file]").setInputFiles(wasm);
await page.getByRole("heading", { name: "The module is accepted" }).waitFor();
assert.match(await page.getByLabel("Configuration").inputValue(), /"broken": true/);
await open("Changes");
await page.getByRole("cell", { name: "rollback" }).first().waitFor();
await look("changes");

// What the broken version failed on is held, and the one before decides it.
await open("Held events");
await page.getByRole("row").filter({ hasText: held }).waitFor();
await look("held");
await page.getByRole("button", { name: "Release" }).click();
await said("The rule decided: notified");
await page.getByText("No event is held.").waitFor();

// A dead letter is redriven, and purged.
await send({ do: "post", channel: "gone", subject: "dead", payload: 1 });
await page.waitForTimeout(1_000);
await open("Dead letters");
await page.getByRole("heading", { name: "gone" }).waitFor();
await look("dead");
await page.getByRole("button", { name: "Redrive" }).click();
await said("It goes out again as");
await page.waitForTimeout(1_000);
await open("Deliveries", "Deliveries of the newest events");
await page.getByText("redriven").first().waitFor();
await look("deliveries");
await open("Dead letters");
await page.getByRole("button", { name: "Purge" }).click();
await page.getByText("No delivery was given up.").waitFor();

// Channels and tokens.
await open("Channels");
const channel = (name) => page.getByRole("row").filter({ has: page.getByRole("cell", { name, exact: true }) });
await channel("hook").getByRole("button", { name: "Send a test" }).click();
await said("It arrived");
await channel("gone").getByRole("button", { name: "Send a test" }).click();
await said("It did not arrive");
await look("channels");
// Of the tenant's own: set up, used, removed; no secret is shown again.
await open("Sources");
await page.getByLabel("Name; one").fill("mine");
await page.getByLabel("Settings, as JSON").fill('{"kind": "json", "open": true, "type": "x"}');
await page.getByRole("button", { name: "Set it up" }).click();
await said("The source mine is set.");
await look("sources");
await open("Channels");
await page.getByLabel("Name; one").fill("mine");
await page.getByLabel("Settings, as JSON").fill(JSON.stringify({ kind: "webhook", url: `${base}/healthz`, headers: { "x-key": "a planted secret" } }));
await page.getByRole("button", { name: "Set it up" }).click();
await said("The channel mine is set.");
assert.ok(!(await page.content()).includes("a planted secret"));
await channel("mine").getByText("x-key").waitFor();
await page.getByLabel("Name; one").fill("other");
await page.getByLabel("Settings, as JSON").fill('{"kind": "slak"}');
await page.getByRole("button", { name: "Set it up" }).click();
await said("did you mean `slack`?");
await channel("mine").getByRole("button", { name: "Remove" }).click();
await said("Removed.");

// A rule that fails again and again is in quarantine, until somebody has it asked again.
for (let n = 0; n < 10; n += 1) await send({ do: "panic", subject: `failing ${n}` });
await page.waitForTimeout(1_000);
await open("Rules");
await page.getByText("quarantined").waitFor();
await page.getByRole("link", { name: "own" }).click();
await page.getByRole("heading", { name: "In quarantine" }).waitFor();
await look("quarantine");
await page.getByRole("button", { name: "Have it asked again" }).click();
await said("It is asked again.");
await page.getByRole("button", { name: "Release its held events" }).click();
await said("Released");
await open("Usage");
await page.getByRole("row").filter({ hasText: "Tokens" }).getByText("1 %").waitFor();
await page.getByText("Decisions in each minute").click();
await look("usage");
await open("Tokens");
await page.getByLabel("What it is for").fill(HOSTILE);
await page.getByRole("button", { name: "Make it" }).click();
await page.getByText("It is shown this once:").waitFor();
await page.reload();
await heading("Tokens");
await look("tokens");
await page.getByRole("row").filter({ hasText: HOSTILE }).getByRole("button", { name: "Revoke" }).click();
await said("Revoked");

// By keyboard alone: the first stop leads past the pages, the next ones are the pages.
await page.reload();
await heading("Tokens");
await page.keyboard.press("Tab");
assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the content");

await page.getByRole("button", { name: "Sign out" }).click();
await heading("Sign in");
assert.deepEqual(await context.cookies(), []);
assert.deepEqual(complaints, []);
await browser.close();
console.log(`${looked} pages looked at in light, dark and phone width`);
