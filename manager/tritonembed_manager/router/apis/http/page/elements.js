// The page's elements. Values from the manager are set as text, never as HTML.

export function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function put(element, text) {
  // Only changed texts are set: a screen reader skips the others.
  if (element.textContent !== text) element.textContent = text;
}

export const find = (selector) => document.querySelector(selector);
