// Keeps the page up to date: every few seconds, the main element is replaced
// by that of a new answer. It waits while text is selected, and while the
// page is hidden. If there is no answer, the page says since when.
"use strict";

const interval = 5000;
const patience = 15000;
const notice = document.getElementById("live");
let lastAnswer = new Date();

async function refresh() {
  if (document.hidden || !getSelection().isCollapsed) return;
  try {
    const answer = await fetch(location.href, {
      cache: "no-store",
      headers: {Accept: "text/html"},
      signal: AbortSignal.timeout(patience),
    });
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    lastAnswer = new Date();
    notice.hidden = true;
  } catch (reason) {
    notice.textContent = `No answer since ${lastAnswer.toLocaleTimeString()} (${reason.message}). The figures below are from then.`;
    notice.hidden = false;
  }
}

// show replaces the main element, and keeps what the reader scrolled to and
// what has the focus.
function show(next) {
  const focused = document.activeElement?.id;
  const scrolled = [...document.querySelectorAll(".scroll[id]")].map((e) => [e.id, e.scrollLeft]);
  document.querySelector("main").replaceWith(next.querySelector("main"));
  document.title = next.title;
  for (const [id, left] of scrolled) {
    const element = document.getElementById(id);
    if (element) element.scrollLeft = left;
  }
  if (focused) document.getElementById(focused)?.focus({preventScroll: true});
}

async function keepUpToDate() {
  await refresh();
  setTimeout(keepUpToDate, interval);
}

setTimeout(keepUpToDate, interval);
document.addEventListener("visibilitychange", refresh);
