// One sentence on the state of the servers, with the names of those that are not ready.

import { clean, plural } from "./words.js";

const GRAVITY = ["failed", "refused", "unhealthy", "draining", "starting"];
const NAMED = 3;
const LONGEST_NAME = 80;
const LONGEST_REASON = 160;

function standing({ id, state, why }) {
  const reason = clean(why ?? "", LONGEST_REASON).replace(/[.…\s]+$/u, "");
  return `${clean(id, LONGEST_NAME)} is ${state}${reason ? `: ${reason}` : ""}.`;
}

export function standings({ age_s: age, draining, servers, totals }) {
  // [the banner's class, its text]. The text must not change every second: a screen reader reads out each new text.
  if (age) return ["bad", "The manager's parent process does not run: what follows is old."];
  const out = servers.filter(({ state }) => state !== "ready")
    .sort((a, b) => GRAVITY.indexOf(a.state) - GRAVITY.indexOf(b.state));
  const more = out.length > NAMED ? [`And ${out.length - NAMED} more.`] : [];
  const named = [...out.slice(0, NAMED).map(standing), ...more];
  const ready = `${totals.ready} of ${plural(totals.servers, "server")} ready.`;
  if (draining) return ["", `Draining: no new requests are taken. ${ready}`];
  if (!totals.servers) return ["bad", "There are no servers."];
  if (!totals.ready) return ["bad", [`No server is ready (${totals.servers} known).`, ...named].join(" ")];
  const broken = out.some(({ state }) => state === "failed" || state === "refused");
  return [out.length ? (broken ? "bad" : "") : "good", [ready, ...named].join(" ")];
}
