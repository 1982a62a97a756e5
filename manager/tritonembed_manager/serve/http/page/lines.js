// Lines over the last minutes.

import { make } from "./elements.js";

export const KEPT_S = 300;
const SVG = "http://www.w3.org/2000/svg";

function line(values, top) {
  // values: [seconds ago, number or null]; in a box of 100 by 100.
  let d = "";
  let pen = false;
  for (const [ago, value] of values) {
    if (value === null || value === undefined || ago > KEPT_S) { pen = false; continue; }
    d += `${pen ? "L" : "M"}${(100 - (ago / KEPT_S) * 100).toFixed(2)} ${(100 - (value / top) * 100).toFixed(2)}`;
    pen = true;
  }
  return d;
}

export function drawing(lines, label) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("preserveAspectRatio", "none");
  if (label === undefined) svg.setAttribute("aria-hidden", "true"); // the number stands beside it
  else { svg.setAttribute("role", "img"); svg.setAttribute("aria-label", label); }
  for (let index = 0; index < lines; index += 1) {
    const path = document.createElementNS(SVG, "path");
    if (index) path.setAttribute("class", "second");
    svg.append(path);
  }
  return svg;
}

export function draw(svg, series, top) {
  series.forEach((values, index) => svg.children[index].setAttribute("d", line(values, top)));
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
  const top = make("div", { class: "scale" }, make("span"));
  const bottom = make("div", { class: "scale" }, make("span", {}, "5 minutes ago"), make("span", {}, "now"));
  figure.append(top, svg, bottom);
  return { svg, top: top.firstChild };
}
