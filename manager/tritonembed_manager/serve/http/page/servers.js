// The table of servers.

import { find, make, put } from "./elements.js";
import { draw, drawing, highest, series } from "./lines.js";
import { count, duration, ms, rate } from "./words.js";

const MARKS = { ready: "●", starting: "◌", draining: "◌", unhealthy: "▲", refused: "✕", failed: "✕" };
const rows = new Map();

function makeRow(server) {
  // With roles of their own: on a phone they are no longer laid out as a table.
  const cell = (label, ...children) => make("td", { role: "cell", "data-label": label, class: "number" }, ...children);
  const text = () => make("span");
  const parts = {
    state: make("span", { class: "state" }), why: make("span", { class: "note" }),
    replicas: text(), inFlight: text(), load: make("i"), restarts: text(),
    rate: text(), rateLine: drawing(1), p50: text(), p50Line: drawing(1), p99: text(), p99Line: drawing(1),
  };
  parts.row = make("tr", { role: "row" },
    make("th", { role: "rowheader", scope: "row" }, server.id),
    make("td", { role: "cell", "data-label": "State" }, parts.state, parts.why),
    cell("Replicas", parts.replicas),
    cell("In flight", parts.inFlight, make("span", { class: "load", "aria-hidden": "true" }, parts.load)),
    cell("Rate", parts.rate, parts.rateLine),
    cell("Median", parts.p50, parts.p50Line),
    cell("99th percentile", parts.p99, parts.p99Line),
    cell("Restarts", parts.restarts));
  return parts;
}

function showServer(server, points, tops) {
  const { id } = server;
  if (!rows.has(id)) rows.set(id, makeRow(server));
  const parts = rows.get(id);
  put(parts.state, `${MARKS[server.state] ?? "?"} ${server.state}`);
  parts.state.className = `state ${server.state}`;
  put(parts.why, `${server.why ? `${server.why}, ` : ""}for ${duration(server.for_s)}`);
  put(parts.replicas, count(server.replicas));
  put(parts.inFlight, count(server.in_flight));
  parts.load.style.width = `${tops.load ? (server.in_flight / tops.load) * 100 : 0}%`;
  put(parts.rate, `${rate(server.rate)}/s`);
  put(parts.p50, ms(server.p50_ms));
  put(parts.p99, ms(server.p99_ms));
  put(parts.restarts, count(server.restarts));
  const own = (name) => series(points, (point) => point.servers[id], name);
  draw(parts.rateLine, [own("rate")], tops.rate);
  draw(parts.p50Line, [own("p50_ms")], tops.latency);
  draw(parts.p99Line, [own("p99_ms")], tops.latency);
  return parts.row;
}

export function showServers(servers, points) {
  const all = (name) => highest(...servers.map(({ id }) => series(points, (point) => point.servers[id], name)));
  // One scale for all, so that rows can be compared.
  const tops = { rate: all("rate") || 1, latency: all("p99_ms") || 1, load: Math.max(0, ...servers.map((s) => s.in_flight)) };
  const body = find("#servers tbody");
  servers.forEach((server, index) => {
    const row = showServer(server, points, tops);
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
  });
  const known = new Set(servers.map(({ id }) => id));
  for (const [id, { row }] of rows) if (!known.has(id)) { row.remove(); rows.delete(id); }
  find("#none").hidden = servers.length > 0;
  find("#servers").hidden = servers.length === 0;
}
