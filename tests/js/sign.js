// Signs payloads as GitHub's own library does: the secret is the argument; a JSON string a line on
// standard input, its signature a line on standard output.
import { Webhooks } from "@octokit/webhooks";
import { createInterface } from "node:readline";

const webhooks = new Webhooks({ secret: process.argv[2] });
for await (const line of createInterface({ input: process.stdin })) {
  console.log(await webhooks.sign(JSON.parse(line)));
}
