// Ids are copied with one click, and times stay relative to now until they are clicked.
(() => {
  "use strict";

  const span = (ms) => {
    const seconds = Math.floor(Math.abs(ms) / 1000);
    const [minutes, hours, days] = [60, 3600, 86400].map((size) => Math.floor(seconds / size));
    if (seconds < 100) return `${seconds} s`;
    if (minutes < 100) return `${minutes} min`;
    if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
    return hours % 24 && days < 10 ? `${days} d ${hours % 24} h` : `${days} d`;
  };

  let exact = false;
  // The server wrote what it was by the database's clock; only what has passed since is added.
  const tick = () => {
    document.querySelectorAll("time.pw-time").forEach((time) => {
      const when = Date.parse(time.dateTime);
      const left = when - Number(time.dataset.now) - (performance.now() - pageShown(time));
      const relative = left <= 0 ? `${span(left)} ago` : `in ${span(left)}`;
      time.textContent = exact ? time.title : relative;
    });
  };
  const shown = new WeakMap();
  const pageShown = (time) => {
    const known = shown.get(time);
    if (known?.now === time.dataset.now) return known.at;
    shown.set(time, { now: time.dataset.now, at: performance.now() });
    return performance.now();
  };
  window.pullwakeTick = tick;
  setInterval(tick, 1000);
  // A phone has no hover, and times are compared: a click shows all of them exactly, or relative.
  document.addEventListener("click", (event) => {
    if (!event.target.closest("time.pw-time")) return;
    event.preventDefault();
    exact = !exact;
    tick();
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    event.preventDefault();
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch {
      // Plain HTTP has no clipboard: what is selected can be copied by hand.
      const range = document.createRange();
      range.selectNodeContents(button.previousElementSibling);
      window.getSelection().removeAllRanges();
      window.getSelection().addRange(range);
      return;
    }
    button.dataset.copied = "";
    setTimeout(() => delete button.dataset.copied, 1200);
  });
})();
