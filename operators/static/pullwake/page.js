// Times are in the reader's zone, and what was typed outlives a session that ran out on a confirmation.
(() => {
  "use strict";

  const two = (number) => String(number).padStart(2, "0");
  const clock = (when) => `${two(when.getHours())}:${two(when.getMinutes())}`;
  const day = (when) => `${when.getFullYear()}-${two(when.getMonth() + 1)}-${two(when.getDate())}`;
  const zone = (when) =>
    new Intl.DateTimeFormat("en", { timeZoneName: "short" })
      .formatToParts(when)
      .find((part) => part.type === "timeZoneName").value;
  const seconds = (when) => `${clock(when)}:${two(when.getSeconds())}`;
  const milliseconds = (when) => String(when.getMilliseconds()).padStart(3, "0");
  const weekday = (when) => new Intl.DateTimeFormat("en", { weekday: "short" }).format(when);

  const forms = {
    exact: (when) => `${day(when)} ${seconds(when)}.${milliseconds(when)} ${zone(when)}`,
    seconds: (when) => `${seconds(when)} ${zone(when)}`,
    hour: clock,
    weekday: (when) => `${weekday(when)} ${clock(when)}`,
    zone,
  };

  const localize = (root) => {
    root.querySelectorAll("time.pw-time").forEach((time) => {
      time.title = forms.exact(new Date(time.dateTime));
    });
    root.querySelectorAll("time[data-form]").forEach((time) => {
      time.textContent = forms[time.dataset.form](new Date(time.dateTime));
    });
    root.querySelectorAll(".pw-bar").forEach((bar) => {
      const start = bar.querySelector("time");
      if (start) bar.title = bar.title.replace(/^from .*? UTC/, `from ${start.textContent} ${zone(new Date(start.dateTime))}`);
    });
  };

  const KEPT = "pw-kept ";
  const fields = (form) => [...form.querySelectorAll("textarea, input:not([type=hidden])")];
  const keyOf = (form) => {
    const address = new URL(form.action);
    address.searchParams.delete("total"); // of all that fit, it is counted anew
    return KEPT + address.pathname + address.search;
  };
  const keep = (form, typed) => sessionStorage.setItem(keyOf(form), JSON.stringify(typed));

  document.addEventListener("submit", (event) => {
    if (!event.target.matches("form[data-keep]")) return;
    keep(
      event.target,
      fields(event.target).map((field) => [field.name, field.type === "checkbox" ? field.checked : field.value]),
    );
  });

  const restore = () => {
    const form = document.querySelector("form[data-keep]");
    const kept = form && sessionStorage.getItem(keyOf(form));
    if (kept) {
      const typed = new Map(JSON.parse(kept));
      for (const field of fields(form)) {
        const value = typed.get(field.name);
        if (typeof value === "boolean") field.checked = value;
        else if (value) field.value = value;
      }
    }
    // Whatever was confirmed is done; only the login comes in between.
    if (location.pathname.includes("/login/")) return;
    Object.keys(sessionStorage).filter((key) => key.startsWith(KEPT)).forEach((key) => sessionStorage.removeItem(key));
  };

  document.addEventListener("DOMContentLoaded", () => {
    const next = document.querySelector("form[data-next]");
    if (next) {
      // The address that is remembered is that of what is left: its own batch is done.
      history.replaceState(null, "", next.action);
      // A moment in which one can pause it.
      const timer = setTimeout(() => next.requestSubmit(), 250);
      next.querySelector("a").addEventListener("click", () => clearTimeout(timer));
    }
    localize(document);
    restore();
    // Whoever pauses it, or finds the server gone, goes on with what was typed.
    if (next) keep(next, [...next.querySelectorAll("input[type=hidden]:not([name=csrfmiddlewaretoken])")].map((field) => [field.name, field.value]));
  });
  // Two regions of one name are told apart by nobody who hears them.
  addEventListener("load", () => {
    document.querySelector("#nav-sidebar-apps [role=region]")?.setAttribute("aria-label", "Menu");
  });
  window.pullwakeLocalize = localize;
})();
