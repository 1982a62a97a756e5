// Requests /status once per second and shows it.

import { standings } from "./banner.js";
import { find, make, put } from "./elements.js";
import { chart, decades, draw, highest, KEPT_S, linear, logarithmic, nice, series, showMarks } from "./lines.js";
import { showServers } from "./servers.js";
import { byCode, clean, count, duration, ms, plural, rate, sum } from "./words.js";

const EVERY_MS = 1000;
const PATIENCE_MS = 5000;
const RATES = ["rate", "token_rate"];

let points = [];
let lastAnswer = performance.now();
let answeredAt = null;
const charts = {
  rate: chart(find("[data-chart=rate]"), 1),
  token_rate: chart(find("[data-chart=token_rate]"), 1),
  latency: chart(find("[data-chart=latency]"), 2),
};

const all = (name) => series(points, (point) => point.totals, name);

function showRate(name, what, now) {
  const values = all(name);
  const top = nice(highest(values));
  draw(charts[name].svg, [values], linear(top));
  showMarks(charts[name].marks, [[1, rate(top)]]);
  charts[name].svg.setAttribute("aria-label", `${what} a second over the last five minutes: now ${rate(now)}, `
    + `at most ${rate(highest(values))}`);
}

function showLatency(totals) {
  const [p50, p99] = [all("p50_ms"), all("p99_ms")];
  const scale = logarithmic([p50, p99]);
  draw(charts.latency.svg, [p50, p99], scale.place);
  const known = [p50, p99].flat().some(([, value]) => value);
  showMarks(charts.latency.marks, known ? decades(scale).map(([place, value]) => [place, axis(value)]) : []);
  charts.latency.svg.setAttribute("aria-label", `Latency over the last five minutes: now median ${ms(totals.p50_ms)}, `
    + `99th percentile ${ms(totals.p99_ms)}, at most ${ms(highest(p99))}`);
}

const axis = (value) => (value >= 1000 ? `${value / 1000} s` : `${value < 1 ? Number(value.toPrecision(1)) : value} ms`);

function banner(kind, text) {
  find("#banner").className = kind;
  put(find("#banner"), text);
}

function showTotals(totals) {
  const shown = {
    ...totals, again: totals.retries + totals.moves,
    service_errors: sum(totals.service_errors), client_errors: sum(totals.client_errors),
  };
  for (const element of document.querySelectorAll("[data-total]")) {
    const name = element.dataset.total;
    put(element, RATES.includes(name) ? rate(shown[name]) : name.endsWith("_ms") ? ms(shown[name]) : count(shown[name]));
  }
  for (const element of document.querySelectorAll("[data-codes]")) put(element, byCode(totals[element.dataset.codes]));
}

function showWarnings(warnings) {
  const shown = find("#warnings");
  shown.hidden = !warnings.length;
  if (warnings.join() !== shown.dataset.key) shown.replaceChildren(...warnings.map((text) => make("li", {}, clean(text, 300))));
  shown.dataset.key = warnings.join();
}

function show(status) {
  const { totals, workers } = status;
  points.push({ time: status.time, totals, servers: Object.fromEntries(status.servers.map((one) => [one.id, one])) });
  // After a clock was set back, there are points in the future.
  points = points.filter(({ time }) => time <= status.time && status.time - time <= KEPT_S);
  put(find("#about"), `${(status.models || [status.model]).join(", ")}, ${status.policy}, ${workers.ready} of ${plural(workers.count, "worker")}, `
    + `up ${duration(status.uptime_s)}, version ${status.version}`);
  document.body.classList.toggle("old", status.age_s !== undefined);
  showWarnings(status.warnings ?? []);
  document.title = `${totals.ready}/${totals.servers} ready – tritonembed`;
  banner(...standings(status));
  showTotals(totals);
  showRate("rate", "Requests", totals.rate);
  showRate("token_rate", "Tokens", totals.token_rate);
  showLatency(totals);
  showServers(status.servers, points);
}

function showNothing(starts) {
  // The text stays the same, so that a screen reader reads it out once.
  if (starts && !points.length) { banner("", "The manager has just started: there is no status yet."); return; }
  banner("bad", answeredAt ? `The manager has not answered since ${answeredAt}: what follows is old.` : "The manager does not answer.");
  document.title = "no answer – tritonembed";
  document.body.classList.toggle("old", points.length > 0);
}

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  const found = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(found.error), { starts: answer.status === 503 });
  return found;
}

async function poll() {
  try {
    const silent = performance.now() - lastAnswer;
    // A browser rarely runs a tab in the background: the history has what it missed.
    if (!points.length || silent > 3 * EVERY_MS) points = (await ask("status/history")).points;
    const status = await ask("status");
    if (points.length && points[points.length - 1].time >= status.time) points.pop();
    lastAnswer = performance.now();
    answeredAt = new Date().toLocaleTimeString("en-GB");
    show(status);
  } catch (error) {
    showNothing(error.starts ?? false);
  }
  setTimeout(poll, EVERY_MS);
}

poll();
