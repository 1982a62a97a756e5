// Numbers, names and reasons in readable form.

const LARGE = 1e8;
const short = (value) => value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 2 });

export const count = (value) => (value >= LARGE ? short(value) : (value ?? 0).toLocaleString("en"));
export const rate = (value) => (value >= LARGE ? short(value)
  : (value ?? 0).toLocaleString("en", { maximumFractionDigits: value < 100 ? 1 : 0 }));
export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

export function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1000) return `${(value / 1000).toFixed(value < 10000 ? 2 : 1)} s`;
  return `${value.toFixed(value < 100 ? 1 : 0)} ms`;
}

export function duration(seconds) {
  const whole = Math.floor(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return plural(Math.floor(whole / 86400), "day");
}

export function clean(text, most) {
  // One line of visible characters: no terminal colours, no control characters, no changes of text direction.
  const line = text
    .replace(/\x1b\[[0-?]*[ -/]*[@-~]/g, "")
    .replace(/[\p{Cc}\p{Zl}\p{Zp}\u200e\u200f\u202a-\u202e\u2066-\u2069]+/gu, " ")
    .trim();
  const characters = Array.from(line);
  return characters.length > most ? `${characters.slice(0, most - 1).join("")}…` : line;
}

const ONE_LINE = 24; // characters;

export function breakable(name) {
  // A long name may be broken after its separators. A short name stays whole.
  if (name.length <= ONE_LINE) return [name];
  return name.match(/[^.:_/\-\]]{0,16}[.:_/\-\]]*/gu).filter((part) => part);
}

export function byCode(codes) {
  // {code: count}, the most frequent first.
  return Object.entries(codes ?? {}).sort(([, a], [, b]) => b - a).map(([code, number]) => `${code} ${count(number)}`).join(", ");
}

export const sum = (codes) => Object.values(codes ?? {}).reduce((all, number) => all + number, 0);
