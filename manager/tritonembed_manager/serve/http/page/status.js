// Asks for /status once a second and shows it.

import { find, put } from "./elements.js";
import { chart, draw, highest, KEPT_S, nice, series } from "./lines.js";
import { showServers } from "./servers.js";
import { count, duration, ms, plural, rate } from "./words.js";

const EVERY_MS = 1000;
const PATIENCE_MS = 5000;

let points = [];
let lastAnswer = performance.now();
const charts = { rate: chart(find("[data-chart=rate]"), 1), latency: chart(find("[data-chart=latency]"), 2) };

function showCharts(totals) {
  const all = (name) => series(points, (point) => point.totals, name);
  const rates = all("rate");
  const [p50, p99] = [all("p50_ms"), all("p99_ms")];
  const tops = [nice(highest(rates)), nice(highest(p50, p99))];
  draw(charts.rate.svg, [rates], tops[0]);
  draw(charts.latency.svg, [p50, p99], tops[1]);
  put(charts.rate.top, `${rate(tops[0])} a second`);
  put(charts.latency.top, ms(tops[1]));
  charts.rate.svg.setAttribute("aria-label", `Requests a second over the last five minutes: now ${rate(totals.rate)}, `
    + `at most ${rate(highest(rates))}`);
  charts.latency.svg.setAttribute("aria-label", `Latency over the last five minutes: now median ${ms(totals.p50_ms)}, `
    + `99th percentile ${ms(totals.p99_ms)}, at most ${ms(highest(p99))}`);
}

function banner(kind, text) {
  find("#banner").className = kind;
  put(find("#banner"), text);
}

function show(status) {
  const { totals, workers } = status;
  points.push({ time: status.time, totals, servers: Object.fromEntries(status.servers.map((one) => [one.id, one])) });
  points = points.filter((point) => status.time - point.time <= KEPT_S);
  put(find("#about"), `${status.model}, ${status.policy}, ${workers.ready} of ${plural(workers.count, "worker")}, `
    + `up ${duration(status.uptime_s)}, version ${status.version}`);
  const shown = { ...totals, again: totals.retries + totals.moves };
  for (const element of document.querySelectorAll("[data-total]")) {
    const name = element.dataset.total;
    put(element, name === "rate" ? rate(shown.rate) : name.endsWith("_ms") ? ms(shown[name]) : count(shown[name]));
  }
  const ready = `${totals.ready} of ${plural(totals.servers, "server")} ready`;
  if (status.draining) banner("", `Draining: no new requests are taken. ${ready}.`);
  else if (totals.ready === 0) banner("bad", totals.servers ? `No server is ready (${totals.servers} known).` : "There are no servers.");
  else banner(totals.ready === totals.servers ? "good" : "", `${ready}.`);
  document.title = `${totals.ready}/${totals.servers} ready – tritonembed`;
  showCharts(totals);
  showServers(status.servers, points);
}

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

async function poll() {
  try {
    const silent = performance.now() - lastAnswer;
    // A tab in the background is asked to run seldom: what it missed is in the history.
    if (!points.length || silent > 3 * EVERY_MS) points = (await ask("status/history")).points;
    const status = await ask("status");
    if (points.length && points[points.length - 1].time >= status.time) points.pop();
    lastAnswer = performance.now();
    show(status);
  } catch {
    // Always the same words: a screen reader is to say them once.
    banner("bad", points.length ? "The manager does not answer: what follows is old." : "The manager does not answer.");
  }
  setTimeout(poll, EVERY_MS);
}

poll();
