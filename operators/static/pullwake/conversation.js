// A conversation follows its stream, is read backwards, and shows the JSON of what it tells. All text
// comes as text: nothing here makes markup of it.
(() => {
  "use strict";

  const start = () => {
    const EVERY_MS = 1_000;
    const TOLD_EVERY_MS = 5_000;
    const LONGEST_MS = 30_000;
    const PATIENCE_MS = 10_000;
    const MOST_ITEMS = 2_000;
    const MOST_TEXT = 50_000;

    document.addEventListener("click", async (event) => {
      const link = event.target.closest(".pw-raw");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      const said = link.closest(".pw-told");
      const shown = said.querySelector(".pw-json");
      link.setAttribute("aria-expanded", String(!shown));
      if (shown) {
        shown.remove();
        return;
      }
      const json = document.createElement("pre");
      json.className = "pw-json";
      json.tabIndex = 0;
      try {
        const answer = await fetch(link.href);
        json.textContent = answer.ok ? await answer.text() : `The server answers ${answer.status}.`;
      } catch {
        json.textContent = "The server does not answer.";
      }
      said.append(json);
    });

    const card = document.querySelector("#conversation");
    if (!card) return;
    const scroll = card.querySelector(".pw-talk-scroll");
    const items = card.querySelector(".pw-talk-page");
    const older = card.querySelector(".pw-older");
    const newer = card.querySelector(".pw-newer");
    const state = card.querySelector(".pw-talk-state");
    let first = Number(items.dataset.first);
    let last = Number(items.dataset.last);
    let seen = items.dataset.seen;

    const fetched = async (query) => {
      const answer = await fetch(`${card.dataset.url}?${query}`, {
        headers: { "X-Requested-With": "fetch" },
        cache: "no-store",
        signal: AbortSignal.timeout(PATIENCE_MS),
      });
      if (answer.status === 204) return null;
      if (!answer.ok) throw new Error(String(answer.status));
      const page = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector(".pw-talk-page");
      if (!page) throw new Error("logged out");
      return page;
    };

    const at = (item) => Number(item.dataset.at);
    const textOf = (item) => item.querySelector(".pw-text");

    // The parts of one text, that came in two pages, are one again.
    const joined = (former, item) => {
      if (!item.dataset.join || former?.dataset.join !== item.dataset.join) return false;
      const [text, more] = [textOf(former), textOf(item)];
      if (!text || !more || text.textContent.length > MOST_TEXT) return false;
      text.textContent += more.textContent;
      former.dataset.last = item.dataset.last;
      const link = former.querySelector(".pw-raw");
      link.href = link.href.replace(/last=\d+/, `last=${item.dataset.last}`);
      return true;
    };

    const place = (item) => {
      const known = item.id ? items.querySelector(`#${CSS.escape(item.id)}`) : null;
      if (known) {
        if (!item.dataset.is || known.dataset.is === item.dataset.is) return false;
        known.remove();
      }
      if (at(item) < first - 1) return false;
      let before = items.lastElementChild;
      while (before && at(before) > at(item)) before = before.previousElementSibling;
      if (joined(before, item)) return true;
      if (before) before.after(item);
      else items.prepend(item);
      return true;
    };

    const isAtEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 48;
    const isMarking = () => {
      const marked = window.getSelection();
      return !marked.isCollapsed && scroll.contains(marked.anchorNode);
    };
    const toEnd = () => {
      scroll.scrollTop = scroll.scrollHeight;
      newer.hidden = true;
    };

    const follow = async () => {
      const page = await fetched(`after=${last}&seen=${seen}`);
      if (!page) return false;
      const follows = isAtEnd() && !isMarking();
      const came = [...page.children].map(place).some(Boolean);
      last = Number(page.dataset.last);
      seen = page.dataset.seen;
      if (came) card.querySelector(".pw-nothing")?.remove();
      while (follows && items.children.length > MOST_ITEMS) {
        items.firstElementChild.remove();
        first = Math.ceil(at(items.firstElementChild));
        older.hidden = false;
      }
      if (follows) toEnd();
      else if (came) newer.hidden = false;
      window.pullwakeTick?.();
      return page.querySelectorAll("article").length > 0;
    };

    let reading = false;
    const readOn = async () => {
      if (reading || older.hidden) return;
      reading = true;
      try {
        const page = await fetched(`before=${first}`);
        const height = scroll.scrollHeight - scroll.scrollTop;
        const former = items.firstElementChild;
        first = Number(page.dataset.first);
        [...page.children].forEach((item) => {
          const isHere = item.id && items.querySelector(`#${CSS.escape(item.id)}`);
          if (!isHere && !joined(former?.previousElementSibling, item)) items.insertBefore(item, former);
        });
        older.hidden = !page.dataset.older;
        older.querySelector("a").href = `${card.dataset.url}?before=${first}`;
        scroll.scrollTop = scroll.scrollHeight - height;
        window.pullwakeTick?.();
      } catch {
        state.textContent = "The server does not answer";
      } finally {
        reading = false;
      }
    };
    older.addEventListener("click", (event) => {
      event.preventDefault();
      readOn();
    });
    scroll.addEventListener("scroll", () => {
      if (scroll.scrollTop < 40) readOn();
      if (isAtEnd()) newer.hidden = true;
    });
    newer.addEventListener("click", toEnd);

    let timer = 0;
    let failures = 0;
    let asking = false;
    let isNewer = false;
    const ask = async () => {
      clearTimeout(timer);
      if (asking || document.hidden) {
        isNewer = asking;
        return;
      }
      asking = true;
      isNewer = false;
      let wait = window.pullwakeIsTold ? TOLD_EVERY_MS : EVERY_MS;
      try {
        if (await follow()) wait = EVERY_MS / 4;
        failures = 0;
        state.textContent = window.pullwakeIsTold ? "Live" : `Looks every ${EVERY_MS / 1000} s`;
      } catch {
        failures += 1;
        wait = Math.min(EVERY_MS * 2 ** failures, LONGEST_MS);
        state.textContent = "Behind: the server does not answer, or you were logged out";
      }
      asking = false;
      if (isNewer) wait = Math.min(wait, EVERY_MS / 4);
      timer = setTimeout(ask, wait);
    };
    document.addEventListener("visibilitychange", ask);
    document.addEventListener("pullwake:changed", ask);
    toEnd();
    ask();
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
