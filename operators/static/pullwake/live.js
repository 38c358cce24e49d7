// Pages follow what happens: a page is read again once the server says that something changed, and
// from time to time, because not all that it shows is told. What differs is changed in place. What
// is being pointed at, marked or typed in is left as it is until it is not, and the page says so,
// and when it is behind. A hidden tab asks nobody.
(() => {
  "use strict";

  const start = () => {
    const EVERY_MS = 5_000;
    const TOLD_EVERY_MS = 15_000;
    const APART_MS = 1_000;
    const TOLD_APART_MS = 250;
    const HELD_MS = 90_000;
    const LONGEST_MS = 60_000;
    const PATIENCE_MS = 10_000;
    const IN_USE_MS = 4_000;
    const UNITS = ".pw-card, .pw-head";

    const idOf = (page) => (page ? page.querySelector("[data-live]")?.id : undefined);
    const region = document.querySelector("[data-live]");
    const list = document.querySelector("[data-live-list]");
    if (!region && !list) return;

    // --- What it says

    const status = document.createElement("div");
    status.className = "pw-live";
    status.setAttribute("role", "status");
    const says = document.createElement("span");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "pw-button";
    status.append(says, button);
    (document.querySelector("main, [role=main]") || document.body).append(status);

    // Said once, and not again every few seconds to whoever listens.
    const say = (text, tone, label, act) => {
      if (says.textContent !== text) says.textContent = text;
      status.dataset.tone = tone;
      button.hidden = !label;
      button.textContent = label || "";
      button.onclick = act || null;
    };

    let asOf = new Date();
    const clock = (when) => when.toTimeString().slice(0, 8);
    // What the server tells of shows at once; all else, heartbeats and timers too, at the next look.
    const isToldOf = (region || list).hasAttribute("data-told");
    const everyMs = () => (window.pullwakeIsTold ? TOLD_EVERY_MS : EVERY_MS);
    const live = () => {
      const looks = `ooks every ${everyMs() / 1000} s`;
      const follows = window.pullwakeIsTold && isToldOf;
      status.title = follows ? `Changes show at once. For heartbeats and timers it l${looks}` : "";
      say(follows ? "Live" : `L${looks}`, "good");
    };
    const setTold = (isTold) => {
      window.pullwakeIsTold = isTold;
      if (status.dataset.tone === "good") live();
    };

    // --- What is in use

    let pointedAt = 0;
    let typedAt = 0;
    for (const name of ["pointermove", "pointerdown", "touchstart", "wheel"]) {
      document.addEventListener(name, () => (pointedAt = performance.now()), { passive: true });
    }
    document.addEventListener("keydown", () => (typedAt = performance.now()));
    const lately = (when) => when > 0 && performance.now() - when < IN_USE_MS;

    const isMarked = (element) => {
      const marked = window.getSelection();
      return !marked.isCollapsed && marked.rangeCount > 0 && marked.getRangeAt(0).intersectsNode(element);
    };
    const why = (element) => {
      if (isMarked(element)) return "while text is marked";
      const focused = document.activeElement;
      if (element.contains(focused) && focused !== document.body) {
        if (focused.matches("textarea, select, input:not([type=checkbox])")) return "where you type";
        if (lately(typedAt)) return "where the keyboard is";
      }
      if (lately(pointedAt) && element.matches(":hover")) return "where you point";
      return "";
    };

    // --- One row's page, and the overview

    const slug = (text) => text.trim().toLowerCase().replace(/[^a-z0-9]+/g, "-");
    // What has its own name stays itself, wherever it moves to.
    const nameAll = (root) => {
      const known = new Set();
      const name = (element, id) => {
        if (element.id || !id || known.has(id)) return;
        known.add(id);
        element.id = id;
      };
      root.querySelectorAll(".pw-card").forEach((card) => {
        const heading = card.querySelector("h2");
        name(card, heading ? `card-${slug(heading.textContent)}` : "");
        card.querySelectorAll("tbody tr, li").forEach((row) => {
          const link = row.querySelector("a[href]");
          if (link) name(row, `in-${card.id}-${slug(link.getAttribute("href"))}`);
        });
      });
    };

    const morphed = (old, fresh) => {
      let kept = "";
      window.Idiomorph.morph(old, fresh, {
        morphStyle: "outerHTML",
        callbacks: {
          beforeNodeMorphed: (node) => {
            if (node.nodeType !== Node.ELEMENT_NODE) return true;
            if (node.dataset.live === "off") return false;
            const reason = node.matches(UNITS) ? why(node) : "";
            kept = kept || reason;
            return !reason;
          },
          beforeNodeRemoved: (node) => {
            if (node.nodeType !== Node.ELEMENT_NODE) return true;
            const reason = node.dataset.live === "off" ? "" : why(node);
            kept = kept || reason;
            return !reason && node.dataset.live !== "off";
          },
          // Whoever opened something has it open.
          beforeAttributeUpdated: (attribute) => !["open", "data-copied"].includes(attribute),
        },
      });
      return kept;
    };

    const anchored = (change) => {
      const inTheMiddle = document.elementFromPoint(innerWidth / 2, innerHeight / 2);
      const anchor =
        document.querySelector("[data-live] :focus") ||
        document.querySelector("[data-live] .pw-card:hover") ||
        inTheMiddle?.closest("[data-live] .pw-card");
      const before = anchor?.getBoundingClientRect().top;
      // What is moved in the page begins at its top again.
      const scrolled = [...document.querySelectorAll("[data-live] .pw-talk-scroll")].map((each) => [each, each.scrollTop]);
      const result = change();
      for (const [each, top] of scrolled) if (each.scrollTop !== top) each.scrollTop = top;
      requestAnimationFrame(() => {
        if (anchor?.isConnected) window.scrollBy(0, anchor.getBoundingClientRect().top - before);
      });
      return result;
    };

    // What is in use is left for a few seconds, and then looked at again.
    let isKept = false;
    const settle = (kept) => {
      isKept = kept !== "";
      return isKept ? say(`Paused ${kept}`, "warn") : live();
    };

    const takePage = (page) => {
      const fresh = idOf(page) === region.id ? page.querySelector("[data-live]") : null;
      if (!fresh) return say("This is gone", "bad", "Leave", () => history.back());
      const here = document.querySelector("[data-live]");
      nameAll(here);
      nameAll(fresh);
      return settle(anchored(() => morphed(here, fresh)));
    };

    // --- A list

    const rowsOf = (page) => {
      const rows = new Map();
      page.querySelectorAll("#result_list > tbody").forEach((row) => {
        const key = row.querySelector(".action-select")?.value || row.querySelector("a[href]")?.getAttribute("href");
        if (key) rows.set(key, row);
      });
      return rows;
    };

    const isListInUse = () => {
      const table = document.querySelector("#result_list");
      return (
        document.querySelector(".action-select:checked") !== null ||
        table.getBoundingClientRect().top < 0 ||
        why(table) !== ""
      );
    };

    const takeList = (page) => {
      const [here, fresh] = [rowsOf(document), rowsOf(page)];
      if (!here.size !== !fresh.size) return say("The list is another now", "warn", "Show it", () => location.reload());
      if (!here.size) return live();
      let kept = "";
      for (const [key, row] of here) {
        const now = fresh.get(key);
        if (!now) continue;
        const reason = row.querySelector(".action-select:checked") ? "" : why(row);
        kept = kept || reason;
        if (reason) continue;
        const [cells, fresher] = [row, now].map((each) => each.querySelectorAll("td:not(.action-checkbox), th"));
        cells.forEach((cell, place) => {
          if (fresher[place]) window.Idiomorph.morph(cell, fresher[place], { morphStyle: "outerHTML" });
        });
      }
      const table = document.querySelector("#result_list");
      const rebuild = () => {
        for (const [key, row] of here) if (!fresh.has(key)) row.remove();
        for (const [key, row] of fresh) {
          const known = here.get(key);
          if (known) known.className = row.className;
          table.append(known || row);
        }
        const pages = document.querySelector(".pw-pages");
        const newer = page.querySelector(".pw-pages");
        if (pages && newer) window.Idiomorph.morph(pages, newer, { morphStyle: "outerHTML" });
        live();
      };
      const come = [...fresh.keys()].filter((key) => !here.has(key)).length;
      const gone = [...here.keys()].filter((key) => !fresh.has(key));
      here.forEach((row, key) => row.classList.toggle("pw-gone", gone.includes(key)));
      if (!come && !gone.length) return settle(kept);
      if (!isListInUse()) return rebuild();
      const told = [come && `${come} new`, gone.length && `${gone.length} no longer here`].filter(Boolean).join(", ");
      return say(told, "warn", "Show", rebuild);
    };

    // --- Looking

    let failures = 0;
    let timer = 0;
    let looking = false;
    let lookedAt = 0;
    let isNewer = false;
    const schedule = (delay) => {
      clearTimeout(timer);
      timer = setTimeout(look, delay);
    };
    const lookSoon = () => {
      if (looking) isNewer = true;
      else schedule(Math.max(0, lookedAt + APART_MS - performance.now()));
    };
    const behind = () => {
      failures += 1;
      const wait = Math.min(EVERY_MS * 2 ** (failures - 1), LONGEST_MS);
      say(`The server does not answer. What you see is as of ${clock(asOf)}`, "bad", "Try now", look);
      schedule(wait);
    };
    const look = async () => {
      if (looking || document.hidden) return;
      looking = true;
      isNewer = false;
      lookedAt = performance.now();
      let answer;
      let text;
      try {
        answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
        if (!answer.ok) throw new Error(String(answer.status));
        text = await answer.text();
      } catch {
        behind();
        return;
      } finally {
        looking = false;
      }
      failures = 0;
      const page = new DOMParser().parseFromString(text, "text/html");
      if (page.querySelector("input[type=password]")) {
        say(`You were logged out. What you see is as of ${clock(asOf)}`, "bad", "Log in", () => location.reload());
        return;
      }
      window.pullwakeLocalize?.(page);
      asOf = new Date();
      isKept = false;
      if (region) takePage(page);
      else takeList(page);
      window.pullwakeTick?.();
      schedule(isNewer ? APART_MS : isKept ? IN_USE_MS : everyMs());
    };

    // --- Being told

    const changes = document.querySelector("[data-changes]")?.dataset.changes;
    const entity = region?.dataset.entity || "";
    const pause = (delay) => new Promise((done) => setTimeout(done, delay));
    let mark = "";
    let held = null;
    window.pullwakeIsTold = false;
    const beTold = async () => {
      if (held || !changes) return;
      let missed = 0;
      while (!document.hidden) {
        held = new AbortController();
        const timeout = setTimeout(() => held?.abort(), HELD_MS);
        try {
          const query = new URLSearchParams({ since: mark, entity });
          const answer = await fetch(`${changes}?${query}`, { cache: "no-store", signal: held.signal });
          // Whoever may not be told, or was logged out, is not; looking says which.
          if (answer.redirected || answer.status === 403 || answer.status === 404) break;
          if (!answer.ok) throw new Error(String(answer.status));
          const told = await answer.json();
          mark = told.mark;
          missed = 0;
          setTold(true);
          if (told.changed.length) document.dispatchEvent(new Event("pullwake:changed"));
          if (told.changed.includes("rows")) lookSoon();
          if (told.changed.length) await pause(TOLD_APART_MS);
        } catch {
          setTold(false);
          if (document.hidden) break;
          if (!missed) lookSoon();
          missed += 1;
          await pause(Math.min(APART_MS * 2 ** missed, LONGEST_MS));
        } finally {
          clearTimeout(timeout);
        }
      }
      setTold(false);
      held = null;
      if (!document.hidden) lookSoon();
    };

    document.addEventListener("visibilitychange", () => {
      if (document.hidden) {
        clearTimeout(timer);
        held?.abort();
      } else {
        look();
        beTold();
      }
    });
    window.addEventListener("online", look);
    window.pullwakeLook = look;
    live();
    schedule(EVERY_MS);
    beTold();
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
