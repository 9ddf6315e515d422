"use strict";
// The OpenAPI document for people: every call, what it takes, what it answers, and a form to try it.

const main = document.getElementById("main");

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function kind(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.type === "array") return `${kind(schema.items)}[]`;
  return schema.type || "any";
}

function parameters(operation) {
  const given = operation.parameters || [];
  if (!given.length) return null;
  const rows = given.map((one) =>
    element("tr", {}, element("td", { class: "id" }, one.name), element("td", {}, one.in),
      element("td", {}, kind(one.schema)), element("td", {}, one.description || (one.required ? "required" : ""))));
  return element("table", {}, element("tbody", {}, ...rows));
}

function answers(operation) {
  const rows = Object.entries(operation.responses).map(([status, answer]) => {
    const content = Object.entries(answer.content || {}).map(([type, media]) => `${type} ${kind(media.schema)}`);
    return element("tr", {}, element("td", { class: "id" }, status), element("td", {}, answer.description || ""),
      element("td", {}, content.join(", ")));
  });
  return element("table", {}, element("tbody", {}, ...rows));
}

function attempt(method, path, operation) {
  const inputs = (operation.parameters || []).map((one) => [one, element("input", { placeholder: one.name, "aria-label": one.name })]);
  const body = operation.requestBody ? element("textarea", { rows: 4, cols: 60, "aria-label": "Body" }, "{}") : null;
  const key = element("input", { type: "password", placeholder: "X-API-KEY", "aria-label": "API key", autocomplete: "off" });
  const out = element("pre", { hidden: "" });
  const send = async () => {
    let url = path;
    const query = new URLSearchParams();
    const headers = key.value ? { "X-API-KEY": key.value } : {};
    for (const [one, input] of inputs) {
      if (one.in === "path") url = url.replace(`{${one.name}}`, encodeURIComponent(input.value));
      else if (input.value && one.in === "query") query.set(one.name, input.value);
      else if (input.value) headers[one.name] = input.value;
    }
    if (body) headers["Content-Type"] = "application/json";
    const asked = [...query].length ? `${url}?${query}` : url;
    out.hidden = false;
    try {
      const answer = await fetch(asked, { method, headers, body: body ? body.value : undefined });
      const text = await answer.text();
      let shown = text;
      try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON: as it is */ }
      out.textContent = `${answer.status} ${answer.statusText}\n\n${shown}`;
    } catch (error) {
      out.textContent = error.message;
    }
  };
  return element("div", {}, element("div", { class: "controls" }, ...inputs.map(([, input]) => input), key,
    element("button", { onclick: send }, "Send")), body, out);
}

function operationOf(path, method, operation) {
  return element("details", {},
    element("summary", {}, element("span", { class: "method" }, method.toUpperCase()), element("code", {}, path), ` ${operation.summary}`),
    element("p", {}, operation.description || ""),
    parameters(operation),
    operation.requestBody ? element("pre", {}, JSON.stringify(operation.requestBody.content, null, 2)) : null,
    answers(operation),
    attempt(method.toUpperCase(), path, operation));
}

async function show() {
  const key = sessionStorage.getItem("agnt5-key");
  const answer = await fetch("/openapi.json", { headers: key ? { "X-API-KEY": key } : {} });
  if (!answer.ok) throw new Error(`/openapi.json: ${answer.status} ${answer.statusText}`);
  const api = await answer.json();
  const tags = new Map();
  for (const [path, operations] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const tag = (operation.tags || ["other"])[0];
      if (!tags.has(tag)) tags.set(tag, []);
      tags.get(tag).push(operationOf(path, method, operation));
    }
  }
  const parts = [element("p", {}, `${api.info.title} ${api.info.version}. ${api.info.description || ""}`)];
  for (const [tag, operations] of tags) parts.push(element("h2", {}, tag), ...operations);
  const shapes = Object.entries(api.components?.schemas || {}).map(([name, schema]) =>
    element("details", {}, element("summary", {}, name), element("pre", {}, JSON.stringify(schema, null, 2))));
  parts.push(element("h2", {}, "Shapes"), ...shapes);
  main.replaceChildren(...parts);
}

show().catch((error) => {
  const trouble = document.getElementById("trouble");
  trouble.hidden = false;
  trouble.textContent = error.message;
});
