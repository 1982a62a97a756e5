// The page's elements. Whatever comes from the manager is put in as text, never as HTML.

export function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function put(element, text) {
  // Only what changed: a screen reader says nothing of the rest.
  if (element.textContent !== text) element.textContent = text;
}

export const find = (selector) => document.querySelector(selector);
