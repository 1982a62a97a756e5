// The table of servers.

import { find, make, put } from "./elements.js";
import { draw, drawing, highest, linear, logarithmic, series } from "./lines.js";
import { breakable, byCode, clean, count, duration, ms, rate, sum } from "./words.js";

const MARKS = { ready: "●", starting: "◌", draining: "◌", unloaded: "○", unhealthy: "▲", refused: "✕", failed: "✕" };
const COLUMNS = 10;
const LONGEST_REASON = 600;
const rows = new Map();

function nameOf(id) {
  return breakable(clean(id, 300)).flatMap((part, index) => (index ? [make("wbr"), part] : [part]));
}

function makeRow(server) {
  // Cells have explicit roles, because on a phone they are not laid out as a table.
  const cell = (label, ...children) => make("td", { role: "cell", "data-label": label, class: "number" }, ...children);
  const text = () => make("span");
  const parts = {
    state: make("span", { class: "state" }), since: make("span", { class: "note" }),
    replicas: text(), inFlight: text(), load: make("i"), restarts: text(), errors: text(),
    rate: text(), rateLine: drawing(1), tokens: text(), p50: text(), p50Line: drawing(1), p99: text(), p99Line: drawing(1),
  };
  // A reason has the whole width: next to the numbers, a long reason would squeeze them.
  parts.reason = make("td", { role: "cell", colspan: String(COLUMNS), class: "reason" });
  parts.reasonRow = make("tr", { role: "row", hidden: "" }, parts.reason);
  parts.row = make("tbody", { role: "rowgroup" }, make("tr", { role: "row" },
    make("th", { role: "rowheader", scope: "row" }, ...nameOf(server.id)),
    make("td", { role: "cell", "data-label": "State" }, parts.state, parts.since),
    cell("Replicas", parts.replicas),
    cell("In flight", parts.inFlight, make("span", { class: "load", "aria-hidden": "true" }, parts.load)),
    cell("Requests/s", parts.rate, parts.rateLine),
    cell("Tokens/s", parts.tokens),
    cell("Median", parts.p50, parts.p50Line),
    cell("99th percentile", parts.p99, parts.p99Line),
    cell("Errors", parts.errors),
    cell("Restarts", parts.restarts)), parts.reasonRow);
  return parts;
}

function showServer(server, points, scales) {
  const { id } = server;
  if (!rows.has(id)) rows.set(id, makeRow(server));
  const parts = rows.get(id);
  put(parts.state, `${MARKS[server.state] ?? "?"} ${server.state}`);
  parts.state.className = `state ${server.state}`;
  put(parts.since, `for ${duration(server.for_s)}`);
  put(parts.reason, clean(server.why, LONGEST_REASON));
  parts.reasonRow.hidden = !server.why;
  put(parts.replicas, count(server.replicas));
  put(parts.inFlight, count(server.in_flight));
  parts.load.style.width = `${scales.load ? (server.in_flight / scales.load) * 100 : 0}%`;
  put(parts.rate, rate(server.rate));
  put(parts.tokens, rate(server.token_rate));
  put(parts.p50, ms(server.p50_ms));
  put(parts.p99, ms(server.p99_ms));
  put(parts.errors, count(sum(server.service_errors)));
  parts.errors.title = byCode(server.service_errors);
  put(parts.restarts, count(server.restarts));
  const own = (name) => series(points, (point) => point.servers[id], name);
  draw(parts.rateLine, [own("rate")], scales.rate);
  draw(parts.p50Line, [own("p50_ms")], scales.latency);
  draw(parts.p99Line, [own("p99_ms")], scales.latency);
  return parts.row;
}

export function showServers(servers, points) {
  const all = (name) => servers.map(({ id }) => series(points, (point) => point.servers[id], name));
  // One scale for all, so that rows can be compared.
  const scales = {
    rate: linear(highest(...all("rate")) || 1),
    latency: logarithmic([...all("p50_ms"), ...all("p99_ms")]).place,
    load: Math.max(0, ...servers.map((server) => server.in_flight)),
  };
  const table = find("#servers");
  servers.forEach((server, index) => {
    const row = showServer(server, points, scales);
    const there = table.tBodies[index];
    if (there !== row) table.insertBefore(row, there ?? null);
  });
  const known = new Set(servers.map(({ id }) => id));
  for (const [id, { row }] of rows) if (!known.has(id)) { row.remove(); rows.delete(id); }
  find("#none").hidden = servers.length > 0;
  table.hidden = servers.length === 0;
}
