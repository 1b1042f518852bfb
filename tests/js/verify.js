// Verifies webhooks with the reference library of Standard Webhooks: the secret is the argument;
// {"headers", "body"} a line on standard input; "ok" or the error a line on standard output.
import { Webhook } from "standardwebhooks";
import { createInterface } from "node:readline";

const webhook = new Webhook(process.argv[2]);
for await (const line of createInterface({ input: process.stdin })) {
  const { headers, body } = JSON.parse(line);
  try {
    webhook.verify(body, headers);
    console.log("ok");
  } catch (error) {
    console.log(error.message);
  }
}
