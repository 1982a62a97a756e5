// Lines over the last minutes.

import { make } from "./elements.js";

export const KEPT_S = 300;
const GAP_S = 10;
const SVG = "http://www.w3.org/2000/svg";

export const linear = (top) => (value) => value / top;

export function logarithmic(values) {
  // The decades that hold the values, at least one: {low, high, at: the position of a value between them}.
  const known = values.flat().map(([, value]) => value).filter((value) => value > 0);
  const [least, most] = known.length ? [Math.min(...known), Math.max(...known)] : [1, 10];
  const low = 10 ** Math.floor(Math.log10(least));
  const high = Math.max(10 * low, 10 ** Math.ceil(Math.log10(most)));
  const place = (value) => Math.log10(Math.max(value, low) / low) / Math.log10(high / low);
  return { low, high, place };
}

function line(values, place) {
  // values: [seconds ago, number or null]; in a box of 100 by 100.
  let d = "";
  let last = null;
  for (const [ago, value] of values) {
    if (value === null || value === undefined || ago > KEPT_S) { last = null; continue; }
    const pen = last !== null && last - ago <= GAP_S;
    d += `${pen ? "L" : "M"}${(100 - (ago / KEPT_S) * 100).toFixed(2)} ${(100 - place(value) * 100).toFixed(2)}`;
    last = ago;
  }
  return d;
}

export function drawing(lines, label) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("preserveAspectRatio", "none");
  if (label === undefined) svg.setAttribute("aria-hidden", "true"); // the number is next to it
  else { svg.setAttribute("role", "img"); svg.setAttribute("aria-label", label); }
  for (let index = 0; index < lines; index += 1) {
    const path = document.createElementNS(SVG, "path");
    if (index) path.setAttribute("class", "second");
    svg.append(path);
  }
  return svg;
}

export function draw(svg, series, place) {
  const paths = svg.querySelectorAll("path");
  series.forEach((values, index) => paths[index].setAttribute("d", line(values, place)));
}

export function series(points, of, name) {
  const now = points.length ? points[points.length - 1].time : 0;
  return points.map((point) => [now - point.time, of(point)?.[name]]);
}

export const highest = (...all) => all.flat().reduce((most, [, value]) => Math.max(most, value ?? 0), 0);

export function nice(value) {
  // The next round number.
  if (value <= 0) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * unit >= value * 0.999);
}

export function chart(figure, lines) {
  const svg = drawing(lines, "");
  const marks = make("div", { class: "marks", "aria-hidden": "true" });
  const bottom = make("div", { class: "scale" }, make("span", {}, "5 minutes ago"), make("span", {}, "now"));
  figure.append(make("div", { class: "plot" }, marks, svg), bottom);
  return { svg, marks };
}

export function showMarks(marks, found) {
  // found: [position from 0 (bottom) to 1 (top), text]; drawn again only if the texts change.
  const key = found.map(([, text]) => text).join();
  if (marks.dataset.key === key) return;
  marks.dataset.key = key;
  marks.replaceChildren(...found.map(([place, text]) => {
    const mark = make("span", {}, text);
    mark.style.bottom = `${place * 100}%`;
    return mark;
  }));
}

export function decades({ low, high, place }) {
  const found = [];
  for (let value = low; value <= high * 1.001; value *= 10) found.push([place(value), value]);
  return found;
}
