export function decide(text) {
  const { data } = JSON.parse(text);
  if (data.sender?.type === "Bot") {
    return JSON.stringify({ reason: "a bot's", actions: [] });
  }
  const repository = data.repository?.full_name ?? "";
  if (repository !== "Codertocat/Hello-World") {
    return JSON.stringify({ reason: "another repository", actions: [] });
  }
  const title = data.issue?.title ?? data.pull_request?.title ?? "untitled";
  return JSON.stringify({
    reason: "a person's",
    actions: [{ channel: "mail", message: { title, text: repository } }],
  });
}
