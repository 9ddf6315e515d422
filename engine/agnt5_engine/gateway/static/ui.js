"use strict";
// Runs, approvals, dead letters and processors, read from the API that serves this page.

const main = document.getElementById("main");
const trouble = document.getElementById("trouble");
const REFRESH_MS = 2000;
const STATUSES = ["pending", "running", "awaiting_user_input", "paused", "completed", "failed", "cancelled", "timeout"];
let filter = "";
let busy = false;

// Everything that came from outside goes through textContent: nothing is ever parsed as HTML.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick" || name === "onchange" || name === "onsubmit") made[name] = value;
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

async function call(method, path, body) {
  const headers = {};
  const key = sessionStorage.getItem("agnt5-key");
  if (key) headers["X-API-KEY"] = key;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  document.getElementById("key-form").hidden = answer.status !== 401 && !key;
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.detail || `${answer.status} ${answer.statusText}`);
  return told;
}

function complain(error) {
  trouble.hidden = !error;
  trouble.textContent = error ? error.message : "";
}

function time(text) {
  return text ? new Date(text).toLocaleString() : "";
}

function json(value) {
  return element("pre", {}, JSON.stringify(value, null, 2));
}

function status(text) {
  return element("span", { class: `status ${text}` }, text);
}

function table(columns, rows, empty) {
  if (!rows.length) return element("p", { class: "none" }, empty);
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...columns.map((name) => element("th", {}, name)))),
    element("tbody", {}, ...rows),
  );
}

function row(...cells) {
  return element("tr", {}, ...cells.map((cell, at) => element("td", at ? {} : { class: "id" }, cell ?? "")));
}

function runLink(id) {
  return element("a", { href: `#runs/${id}` }, id);
}

async function act(method, path, body) {
  try {
    await call(method, path, body);
    complain(null);
  } catch (error) {
    complain(error);
    return;
  }
  await show();
}

async function runs() {
  const query = filter ? `&status=${filter}` : "";
  const page = await call("GET", `/v1/runs?limit=100${query}`);
  const choice = element(
    "select",
    { onchange: (event) => { filter = event.target.value; show(); } },
    element("option", { value: "" }, "every status"),
    ...STATUSES.map((name) => element("option", { value: name, selected: name === filter ? "" : null }, name)),
  );
  const rows = page.items.map((run) =>
    row(runLink(run.run_id), run.workflow, status(run.status), time(run.created_at), note(run)));
  return [
    element("div", { class: "controls" }, element("label", {}, "Show ", choice)),
    table(["Run", "Workflow", "Status", "Created", ""], rows, "There are no such runs."),
    page.next_cursor ? element("p", { class: "none" }, "Older ones: agnt5 runs list --cursor ...") : null,
  ];
}

function note(run) {
  if (run.error) return `${run.error.type}: ${run.error.message}`;
  if (run.pause) return run.pause.reason;
  const [wait] = run.waiting_on;
  return wait ? `${wait.kind} ${wait.name} ${wait.until ? `until ${time(wait.until)}` : ""}` : "";
}

async function oneRun(id) {
  const path = `/v1/runs/${encodeURIComponent(id)}`;
  const [run, history] = await Promise.all([call("GET", path), call("GET", `${path}/events`)]);
  const buttons = [];
  if (!run.finished_at) {
    buttons.push(element("button", { onclick: () => confirm("Cancel this run?") && act("POST", `${path}/cancel`) }, "Cancel"));
  }
  if (["failed", "paused"].includes(run.status)) {
    buttons.push(element("button", { onclick: () => act("POST", `${path}/retry`) }, "Retry"));
  }
  const events = history.items.map((event) =>
    row(String(event.seq), time(event.time), event.type, event.name, Object.keys(event.data).length ? json(event.data) : ""));
  return [
    element("h2", {}, `${run.workflow} `, status(run.status)),
    element("div", { class: "controls" }, element("code", {}, run.run_id), ...buttons),
    json(run),
    table(["", "Time", "Event", "Name", "Data"], events, "Nothing has happened yet."),
  ];
}

function answerForm(approval) {
  const path = `/v1/workflows/resume/${encodeURIComponent(approval.run_id)}`;
  const answer = (value) => act("POST", path, { user_response: value, entry: approval.entry });
  const parts = [];
  if (approval.input_type === "multiselect") {
    const choice = element("select", { multiple: "", "aria-label": "Answers" },
      ...approval.options.map((option) => element("option", { value: option.id }, option.label)));
    parts.push(choice, element("button", { onclick: () => answer([...choice.selectedOptions].map((one) => one.value)) }, "Answer"));
  } else {
    parts.push(...approval.options.map((option) => element("button", { onclick: () => answer(option.id) }, option.label)));
  }
  if (approval.allow_custom || !approval.options.length) {
    const text = element("input", { "aria-label": "Answer" });
    parts.push(text, element("button", { onclick: () => answer(text.value) }, "Answer"));
  }
  if (approval.skippable) parts.push(element("button", { onclick: () => answer(null) }, "Skip"));
  return element("div", { class: "controls" }, ...parts);
}

async function approvals() {
  const page = await call("GET", "/v1/approvals?limit=100");
  const rows = page.items.map((one) =>
    row(runLink(one.run_id), one.workflow, element("div", {}, one.question, answerForm(one)), time(one.asked_at)));
  return [table(["Run", "Workflow", "Question", "Asked"], rows, "Nobody waits for an answer.")];
}

async function deadLetters() {
  const page = await call("GET", "/v1/dead-letters?limit=100");
  const rows = page.items.map((one) =>
    row(one.id, `${one.topic}[${one.partition}]@${one.offset}`, element("div", {}, `${one.reason}: ${one.detail}`, json(one.value)),
      time(one.time), element("button", { onclick: () => act("POST", `/v1/dead-letters/${encodeURIComponent(one.id)}/redrive`) }, "Redrive")));
  return [table(["ID", "From", "Why, and what", "Time", ""], rows, "There are no dead letters.")];
}

async function processors() {
  const page = await call("GET", "/v1/processors");
  const rows = page.items.map((one) => row(one.id, one.url, one.partitions.join(", ")));
  return [table(["Processor", "Address", "Partitions"], rows, "Nobody is there.")];
}

const VIEWS = { runs, approvals, "dead-letters": deadLetters, processors };

async function show() {
  if (busy) return;
  busy = true;
  const [name, id] = location.hash.slice(1).split("/");
  const view = VIEWS[name] ? name : "runs";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    const content = view === "runs" && id ? await oneRun(decodeURIComponent(id)) : await VIEWS[view]();
    main.replaceChildren(...content.filter(Boolean));
    complain(null);
    const open = await call("GET", "/v1/approvals?limit=100");
    document.getElementById("open-approvals").textContent =
      open.items.length ? `(${open.items.length}${open.next_cursor ? "+" : ""})` : "";
  } catch (error) {
    complain(error);
  } finally {
    busy = false;
  }
}

function isTyping() {
  return main.contains(document.activeElement) && /INPUT|SELECT/.test(document.activeElement.tagName);
}

document.getElementById("key-form").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("agnt5-key", document.getElementById("key").value);
  show();
};
addEventListener("hashchange", show);
setInterval(() => { if (!document.hidden && !isTyping()) show(); }, REFRESH_MS);
show();
