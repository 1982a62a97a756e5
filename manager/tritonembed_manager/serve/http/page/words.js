// Numbers as people read them.

export const count = (value) => (value ?? 0).toLocaleString("en");
export const rate = (value) => (value ?? 0).toLocaleString("en", { maximumFractionDigits: value < 100 ? 1 : 0 });
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
