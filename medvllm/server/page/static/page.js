// What the page does beyond links and forms: copy, live memory, busy buttons, the key "/". All of it can be done without.
"use strict";

const show = (root) => {
  for (const each of root.querySelectorAll("[data-copy], [data-live]")) each.hidden = false;
};

document.addEventListener("DOMContentLoaded", () => show(document));
document.addEventListener("htmx:load", (event) => show(event.target));

// The memory is asked for only while somebody looks at it and wants it live.
document.addEventListener("htmx:beforeRequest", (event) => {
  const live = document.getElementById("live");
  if (event.target.id === "memory" && (document.hidden || !live.checked)) event.preventDefault();
});

// A load may take minutes: the button says that it is on its way.
document.addEventListener("submit", (event) => {
  if (event.target.matches("[method=post]:not([hx-post])")) event.submitter?.classList.add("working");
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = document.getElementById(button.dataset.copy).textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});

document.addEventListener("keydown", (event) => {
  const search = document.querySelector("[data-search]");
  const writes = event.target.matches("input, textarea, select");
  if (event.key === "/" && search && !writes && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    search.focus();
  }
});
