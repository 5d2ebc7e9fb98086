"use strict";
(() => {
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  const byId = (id) => document.getElementById(id);
  const { measures, responses } = JSON.parse(byId("data").textContent);
  const names = { logprob: "ln p", lambda: "λ", omega: "ΔH", entropy: "H", probability: "p" };
  const units = { logprob: "nats", omega: "nats", entropy: "nats" };
  const tip = byId("tip"), problems = byId("problems");
  const sections = all("section", problems);
  const articles = all("article", problems);
  const boxOf = new Map(articles.map((article) => [Number(article.dataset.index), article.querySelector(".tokens")]));
  let measure = measures.includes(location.hash.slice(1)) ? location.hash.slice(1) : measures[0];
  let on = null, pinned = false;

  // Tokens: a response's text becomes spans when it comes near the screen.
  function build(box) {
    if (box.built) return box;
    const row = responses[box.closest("article").dataset.index];
    const stopped = box.closest("article").querySelector(".facts").dataset.finish === "stop";
    const spans = row.tokens.map((text, k) => {
      const span = document.createElement("span");
      span.textContent = text;
      span.k = k;
      span.ended = stopped && k === row.tokens.length - 1;
      hint(span, text);
      return span;
    });
    box.replaceChildren(...spans);
    box.built = true;
    paint(box);
    return box;
  }

  function hint(span, text) {
    if (/^ +$/.test(text)) span.dataset.space = "·".repeat(text.length);
    else if (/[\n\r\t]/.test(text)) span.dataset.mark = (text.match(/[\n\r\t]/g) || []).map((c) => (c === "\t" ? "→" : "↵")).join("");
    else if (/^[\s\p{C}]*$/u.test(text)) span.dataset.mark = "◌";
    span.control = /[\u202a-\u202e\u2066-\u2069]/.test(text); // what turns the direction of text stays within its token
  }

  function paint(box) {
    const levels = responses[box.closest("article").dataset.index].levels[measure];
    for (const span of box.children) {
      const level = levels[span.k];
      span.className = (span.ended ? "end" : "") + (span.control ? " control" : "") + (level ? (level < 0 ? " n" : " p") + Math.abs(level) : "") + (span === on ? " on" : "");
    }
  }

  function show(name) {
    measure = name;
    for (const button of all("button[data-measure]")) button.setAttribute("aria-pressed", String(button.dataset.measure === name));
    for (const legend of all("[data-legend]")) legend.hidden = legend.dataset.legend !== name;
    for (const link of all("nav a")) link.hash = name;
    for (const box of boxOf.values()) if (box.built) paint(box);
    if (on) tell(on);
  }

  // The numbers of one token.
  function number(value) {
    if (value === null) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    const text = size < 1e-3 || size >= 1e5 ? value.toExponential(2).replace("e+", "e") : value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(size))));
    return text.replace(/-/g, "−");
  }

  function spelled(text) {
    return [...text].map((c) => {
      if (c === " ") return "␣";
      const known = { "\n": "\\n", "\t": "\\t", "\r": "\\r" }[c];
      return known || (/[\p{C}\p{Z}]/u.test(c) ? "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") : c);
    }).join("") || "(part of a character)";
  }

  function line(label, value, chosen = false) {
    const row = document.createElement("div");
    for (const text of [label, value]) row.appendChild(document.createElement("span")).textContent = text;
    if (chosen) row.className = "chosen";
    return row;
  }

  function tell(span) {
    if (on) on.classList.remove("on");
    on = span;
    on.classList.add("on");
    const row = responses[span.closest("article").dataset.index], k = span.k;
    const code = document.createElement("code");
    code.textContent = spelled(row.tokens[k]);
    const lines = measures.map((name) => {
      const unit = units[name] ? " " + units[name] : "";
      return line(names[name], number(row.values[name][k]) + unit, name === measure);
    });
    lines.push(line(names.logprob, number(row.logprob[k]) + " nats"));
    tip.replaceChildren(code, ...lines, line("token", `${k + 1} of ${row.tokens.length}, id ${row.ids[k]}`));
    tip.hidden = false;
    place(span);
  }

  function place(span) {
    const at = span.getClientRects()[0] || span.getBoundingClientRect();
    const width = document.documentElement.clientWidth, left = Math.min(Math.max(8, at.left - 10), width - tip.offsetWidth - 8);
    const below = at.bottom + 8 + tip.offsetHeight <= window.innerHeight;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${(below ? at.bottom + 8 : at.top - tip.offsetHeight - 8) + window.scrollY}px`;
  }

  function close() {
    if (on) on.classList.remove("on");
    on = null;
    pinned = false;
    tip.hidden = true;
  }

  const tokenAt = (event) => event.target.closest(".tokens > span");
  problems.addEventListener("pointerover", (event) => {
    if (pinned || event.pointerType === "touch") return;
    const span = tokenAt(event);
    if (span) tell(span);
    else if (on) close();
  });
  problems.addEventListener("pointerleave", () => { if (!pinned) close(); });
  document.addEventListener("click", (event) => {
    const span = tokenAt(event), link = event.target.closest("a[data-row]");
    if (link) {
      event.preventDefault();
      go(Number(link.dataset.row), Number(link.dataset.token));
    } else if (span) {
      const same = pinned && span === on;
      close();
      if (!same) { tell(span); pinned = true; }
    } else if (!event.target.closest(".bar")) close();
  });

  function go(row, token) {
    if (boxOf.get(row).closest("article").hidden) { byId("filter").value = ""; arrange(); }
    const box = build(boxOf.get(row)), span = box.children[token];
    box.focus({ preventScroll: true });
    span.scrollIntoView({ block: "center" });
    tell(span);
    pinned = true;
  }

  // From response to response, in the order that is shown.
  function hop(way) {
    const seen = all("article", problems).filter((article) => !article.hidden);
    const from = document.activeElement.closest("article") || (on && on.closest("article"));
    const at = from ? seen.indexOf(from) + way : way > 0 ? 0 : seen.length - 1;
    const to = seen[Math.min(seen.length - 1, Math.max(0, at))];
    if (!to) return;
    const box = build(to.querySelector(".tokens"));
    close();
    box.focus({ preventScroll: true });
    to.scrollIntoView({ block: "center" });
  }

  // Keys: j and k response, 1 to 4 colour, [ and ] step; within a response the arrows walk its tokens.
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input")) return;
    const box = event.target.closest(".tokens");
    const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    if (measures[event.key - 1]) show(measures[event.key - 1]);
    else if (event.key === "j" || event.key === "k") hop(event.key === "j" ? 1 : -1);
    else if (event.key === "Escape") close();
    else if (event.key === "[" || event.key === "]") {
      const link = document.querySelector(`nav a[rel="${event.key === "[" ? "prev" : "next"}"]`);
      if (link) link.click();
    } else if (box && event.key in moves && build(box).children.length) {
      const last = box.children.length - 1, from = on && on.parentNode === box ? on.k : -1;
      const k = Math.min(last, Math.max(0, from + moves[event.key]));
      event.preventDefault();
      box.children[k].scrollIntoView({ block: "nearest" });
      tell(box.children[k]);
      pinned = true;
    }
  });
  problems.addEventListener("focusin", (event) => {
    const box = event.target.closest(".tokens");
    if (box && box.matches(":focus-visible") && build(box).children.length && !(on && on.parentNode === box)) { tell(box.children[0]); pinned = true; }
  });
  problems.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !event.relatedTarget.closest(".bar")) close();
  });

  // Order and filter; problems stay together, and go by the first response that each shows.
  const ways = {
    index: (a) => Number(a.dataset.index), high: (a) => -a.dataset.reward, low: (a) => Number(a.dataset.reward),
    damped: (a) => Number(a.dataset.rank), entropy: (a) => -a.dataset.entropy, long: (a) => -a.dataset.long,
  };

  function arrange() {
    const key = ways[byId("order").value], wanted = byId("filter").value, bound = Number(wanted.slice(1));
    const passes = { "=": (x) => x === bound, ">": (x) => x > bound, "<": (x) => x <= bound }[wanted[0]] || (() => true);
    const value = (a) => (Number.isNaN(key(a)) ? Infinity : key(a));
    const order = (a, b) => value(a) - value(b) || a.dataset.index - b.dataset.index;
    close();
    for (const article of articles) article.hidden = !passes(Number(article.dataset.reward));
    for (const section of sections) {
      const own = all("article", section).sort(order);
      section.append(...own);
      section.first = own.find((article) => !article.hidden);
      section.hidden = !section.first;
    }
    const seen = sections.filter((section) => section.first).sort((a, b) => order(a.first, b.first));
    problems.append(...seen);
    const shown = articles.filter((article) => !article.hidden).length;
    byId("count").textContent = `${shown} of ${articles.length}`;
    byId("none").hidden = shown > 0 || !articles.length;
  }

  document.documentElement.classList.add("script");
  for (const button of all("button[data-measure]")) button.addEventListener("click", () => show(button.dataset.measure));
  let standing = null; // where the reader was before a press of the button took the focus
  for (const button of all("button[data-go]")) {
    button.addEventListener("pointerdown", () => { standing = document.activeElement.closest("article"); });
    button.addEventListener("click", () => {
      if (standing) standing.querySelector(".tokens").focus({ preventScroll: true });
      hop(Number(button.dataset.go));
    });
  }
  for (const id of ["order", "filter"]) byId(id).addEventListener("change", arrange);
  for (const box of boxOf.values()) {
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "Response, token by token");
  }
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { build(entry.target.querySelector(".tokens")); near.unobserve(entry.target); }
  }, { rootMargin: "800px" });
  articles.forEach((article) => near.observe(article));
  window.addEventListener("beforeprint", () => boxOf.forEach(build));
  window.addEventListener("resize", () => { if (on) place(on); });
  show(measure);
  arrange();
})();
