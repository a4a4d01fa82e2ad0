// Times in the reader's own zone, whole rows as links. Everything works without this file.
(() => {
  "use strict";
  const pad = (n) => String(n).padStart(2, "0");
  const day = (d) => `${d.getFullYear()}-${pad(d.getMonth() + 1)}-${pad(d.getDate())}`;
  const clock = (d) => `${pad(d.getHours())}:${pad(d.getMinutes())}:${pad(d.getSeconds())}`;
  const localise = (root) => {
    const today = day(new Date());
    for (const el of root.querySelectorAll("time[datetime]")) {
      const d = new Date(el.dateTime);
      if (Number.isNaN(d.getTime())) continue;
      const short = el.dataset.only === "clock" || day(d) === today;
      el.textContent = short && day(d) === today ? clock(d) : `${day(d)} ${clock(d)}`;
    }
  };
  localise(document);
  document.addEventListener("htmx:load", (event) => localise(event.detail.elt));
  document.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-href]");
    if (!row || event.target.closest("a, button, input, code") || String(getSelection())) return;
    if (event.ctrlKey || event.metaKey) window.open(row.dataset.href, "_blank", "noopener");
    else window.location.assign(row.dataset.href);
  });
})();
