"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // Dark and light: what the system says, until somebody says otherwise.
  const theme = get("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => document.documentElement.dataset.theme;
  const isDark = () => (chosen() ? chosen() === "dark" : system.matches);
  const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
  const remembered = (value) => {
    try { // a browser may keep nothing of a file
      if (value === undefined) return localStorage.getItem("theme");
      localStorage.setItem("theme", value);
    } catch { /* then the choice ends with the page */ }
    return null;
  };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    remembered(chosen());
    showTheme();
  });
  system.addEventListener("change", showTheme);
  if (["dark", "light"].includes(remembered())) document.documentElement.dataset.theme = remembered();
  showTheme();

  // Tables: titles sort; what has no number goes last either way.
  const collator = new Intl.Collator("en", { numeric: true });
  const number = (cell) => (cell.dataset.v === undefined ? null : Number(cell.dataset.v));
  const before = (a, b, sign) => {
    const [x, y] = [number(a), number(b)];
    if (x === null || y === null) {
      if (x !== null || y !== null) return x === null ? 1 : -1;
      return sign * collator.compare(a.textContent, b.textContent);
    }
    return sign * (x - y);
  };
  const sort = (head) => {
    const now = head.getAttribute("aria-sort");
    const up = now === "none" ? "up" in head.dataset : now === "descending";
    for (const other of head.parentElement.children) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const rows = [...body.rows];
    const i = head.cellIndex;
    rows.sort((a, b) => before(a.cells[i], b.cells[i], up ? 1 : -1));
    body.append(...rows);
  };
  for (const button of document.querySelectorAll("table.arms thead button")) {
    button.addEventListener("click", () => sort(button.parentElement));
    button.dataset.tip = button.title; // one box for mouse, keyboard and touch
    button.removeAttribute("title");
  }

  // Arms: only those that hold all words of the box.
  const filter = get("filter");
  const rows = [...document.querySelectorAll("table.arms tbody tr")];
  const names = new Map(rows.map((row) => [row, row.cells[0].textContent.toLowerCase()]));
  get("filtering").hidden = rows.length < 8;
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => names.get(row).includes(word));
    const all = new Set(names.values());
    const kept = new Set(rows.filter((row) => !row.hidden).map((row) => names.get(row)));
    get("filtered").textContent = words.length ? `${kept.size} of ${all.size}` : "";
  });

  // The box that explains what the pointer, the focus or a finger is on.
  const tip = get("tip");
  let target = null;
  let leaving = 0;
  const hide = () => {
    if (target) target.removeAttribute("data-shown");
    target = null;
    tip.hidden = true;
  };
  const show = (element) => {
    clearTimeout(leaving);
    if (element === target) return;
    hide();
    target = element;
    tip.replaceChildren(...(element.explain ? element.explain() : [make("p", "", element.dataset.tip)]));
    tip.hidden = false;
    tip.style.left = tip.style.top = "0px";
    const place = element.getClientRects()[0] || element.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    const left = Math.max(8, Math.min(place.left, width - tip.offsetWidth - 8));
    const room = innerHeight - place.bottom > tip.offsetHeight + 12;
    const top = room ? place.bottom + 6 : Math.max(0, place.top - tip.offsetHeight - 6);
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${top + scrollY}px`;
    element.dataset.shown = "";
  };
  const explained = (event) => event.target.closest?.("[data-tip], #tokens .token, #tip");
  const enter = (event) => {
    const element = explained(event);
    if (element === tip) clearTimeout(leaving);
    else if (element) show(element);
  };
  const leave = () => {
    clearTimeout(leaving);
    leaving = setTimeout(hide, 150);
  };
  for (const name of ["mouseover", "focusin", "click"]) document.addEventListener(name, enter);
  for (const name of ["mouseout", "focusout"]) {
    document.addEventListener(name, (event) => explained(event) && leave());
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());

  // Tokens.
  if (!get("data")) return;
  const data = JSON.parse(get("data").textContent);
  const kinds = ["accepted", "recovered", "bonus"];
  const means = [
    "accepted: a draft token that the rule let pass",
    "recovered: the verifier\u2019s own, none of the candidates",
    "bonus: the verifier\u2019s own, behind draft tokens that were all accepted",
  ];
  // Whitespace as one sees it; a token that is nothing else would be invisible.
  const marks = { "\n": "\u21b5", "\r": "\u240d", "\t": "\u21e5", " ": "\u00b7" };
  const visible = (text, part) => {
    if (!text) return [make("span", "mark", part)];
    const blank = !text.trim();
    return text.split(/([\n\r\t]|^ +$)/).filter(Boolean).flatMap((piece) => {
      if (piece in marks && piece !== " ") {
        return [make("span", "mark", marks[piece]), document.createTextNode(piece === "\r" ? "" : piece)];
      }
      if (blank) return [make("span", "mark", marks[" "].repeat(piece.length))];
      return [document.createTextNode(piece)];
    });
  };
  const quoted = (text) => {
    const code = make("code");
    code.textContent = `\u201c${text.replace(/[\n\r\t]/g, (c) => marks[c])}\u201d`;
    return code;
  };
  const explain = (text, kind, depth, rejected, experts) => {
    const first = make("p");
    first.append(quoted(text));
    const parts = [first, make("p", "", means[kind]), make("p", "", `depth ${depth}`)];
    if (rejected.length) {
      parts.push(make("p", "", "candidates that were not taken:"));
      const list = make("ul");
      for (const each of rejected) list.append(make("li"));
      rejected.forEach((each, i) => list.children[i].append(quoted(each)));
      parts.push(list);
    } else {
      parts.push(make("p", "", "no other candidates here"));
    }
    if (experts.length) {
      parts.push(make("p", "", "experts that it took, by sparse layer:"));
      const list = make("ol");
      for (const each of experts) list.append(make("li", "", each.join(", ")));
      parts.push(list);
    }
    return parts;
  };
  const box = get("tokens");
  const [arms, prompts] = [get("arm"), get("prompt")];
  const title = (text) => (text[2] ? `${text[1]}, turn ${text[2] + 1}` : text[1]);
  const ofArm = () => data.texts.filter((text) => text[0] === Number(arms.value));
  const draw = () => {
    const text = ofArm()[Number(prompts.value)];
    if (!text) return;
    hide();
    const spans = text[4].map(([word, kind, depth, rejected = [], part = "", experts = []]) => {
      const step = depth === 1 ? " step" : "";
      const span = make("span", `token ${kinds[kind]} d${Math.min(depth, 5)}${step}`);
      if (kind !== 0) span.classList.remove(`d${Math.min(depth, 5)}`);
      span.append(...visible(word, part || "\u2205"));
      span.tabIndex = -1;
      span.setAttribute("role", "button");
      span.setAttribute("aria-describedby", "tip");
      span.explain = () => explain(word || part || "\u2205", kind, depth, rejected, experts);
      return span;
    });
    if (spans.length) spans[0].tabIndex = 0;
    box.replaceChildren(...spans);
    get("asked").replaceChildren(document.createTextNode(data.prompts[text[3]]));
    const steps = text[4].filter((token) => token[2] === 1).length;
    const mean = steps ? (spans.length / steps).toFixed(2) : "-";
    get("about").textContent = `${spans.length} tokens in ${steps} steps: ${mean} per step`;
  };
  const fill = (select, labels, index) => {
    select.replaceChildren(...labels.map((label, i) => new Option(label, i)));
    select.value = String(Math.max(0, index));
  };
  const changeArm = () => {
    const kept = prompts.selectedOptions[0]?.text;
    const titles = ofArm().map(title);
    fill(prompts, titles, titles.indexOf(kept));
    draw();
  };
  box.addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const next = way && box.children[[...box.children].indexOf(document.activeElement) + way];
    if (!way) return;
    event.preventDefault();
    if (!next) return;
    document.activeElement.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  arms.addEventListener("change", changeArm);
  prompts.addEventListener("change", draw);
  fill(arms, data.arms, 0);
  changeArm();
})();
