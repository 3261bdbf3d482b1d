"use strict";
// The browser of responses, and the values that charts show on hover.
// Texts come as JSON and go into the page as text, never as markup.
(() => {
  const MAX_LISTED = 100;
  const SVG = "http://www.w3.org/2000/svg";

  function element(tag, properties = {}, children = []) {
    const { style, ...rest } = properties;
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(rest)) {
      if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
      else made[name] = value;
    }
    for (const [name, value] of Object.entries(style || {})) made.style.setProperty(name, value);
    made.append(...children);
    return made;
  }

  const percent = (value) => (value === null ? "unknown" : `${Math.round(1000 * value) / 10}%`);
  const rate = (value) => (value === null ? "unknown" : value.toFixed(3));

  // A reader's place survives the reloads of a page that follows a run.
  function remember(name, value) {
    try { sessionStorage.setItem(`${location.pathname} ${name}`, JSON.stringify(value)); } catch { /* pages from files may have no storage */ }
  }

  function remembered(name) {
    try { return JSON.parse(sessionStorage.getItem(`${location.pathname} ${name}`)) || {}; } catch { return {}; }
  }

  function number(min, max, step) {
    return element("input", { type: "number", min, max, step, inputMode: "decimal" });
  }

  function choice(options) {
    return element("select", {}, options.map(([value, text]) => element("option", { value, textContent: text })));
  }

  function heat(names, matrix, caption) {
    const head = element("tr", {}, [
      element("td"),
      ...names.map((name) => element("th", { scope: "col", textContent: name })),
    ]);
    const rows = matrix.map((row, i) =>
      element("tr", {}, [
        element("th", { scope: "row", textContent: names[i] }),
        ...row.map((value, j) => {
          if (i === j) return element("td", { className: "self", textContent: "-" });
          if (value === null) return element("td", { className: "self", textContent: "not compared" });
          const className = value > 0.5 ? "above" : value < 0.5 ? "below" : "even";
          return element("td", { className, textContent: value.toFixed(2), style: { "--p": value } });
        }),
      ]),
    );
    const table = element("table", { className: "heat" }, [
      element("thead", {}, [head]),
      element("tbody", {}, rows),
    ]);
    return [
      element("p", { className: "head note", textContent: caption }),
      element("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": caption }, [table]),
    ];
  }

  // The text with its new words inside <ins>; spans are counted in characters, not in UTF-16 units.
  function marked(text, spans) {
    if (!spans || spans.length === 0) return [text];
    const characters = Array.from(text);
    const pieces = [];
    let end = 0;
    for (const [start, stop] of spans) {
      pieces.push(characters.slice(end, start).join(""), element("ins", { textContent: characters.slice(start, stop).join("") }));
      end = stop;
    }
    return [...pieces, characters.slice(end).join("")];
  }

  function card(title, figures, response, className = "") {
    return element("div", { className: `card ${className}` }, [
      element("h4", { textContent: title }),
      element("div", { className: "figures", textContent: figures }),
      element("div", { className: "text", dir: "auto", tabIndex: 0, role: "group", "aria-label": `text of ${title}` }, marked(response.text, response.new)),
    ]);
  }

  const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

  function figures(response) {
    const parts = [counted(response.tokens, "token")];
    if (response.rate !== null) parts.unshift(`win rate ${rate(response.rate)}`);
    if (response.truncated) parts.push("truncated");
    return parts.join(", ");
  }

  let componentsAreOpen = false;

  function sampledDetail(prompt) {
    const names = prompt.responses.map((_, k) => `${k + 1}`);
    const rates = prompt.responses.map((response) => response.rate);
    const differ = !rates.includes(null) && Math.max(...rates) > Math.min(...rates);
    const best = differ ? rates.indexOf(Math.max(...rates)) : -1;
    const worst = differ ? rates.indexOf(Math.min(...rates)) : -1;
    const title = (k) => `Response ${names[k]}${k === best ? ": best" : k === worst ? ": worst" : ""}`;
    const caption = "How probably the response of the row is preferred to that of the column";
    return [
      element("div", { className: "cards" }, prompt.responses.map((response, k) =>
        card(title(k), figures(response), response, k === best ? "best" : k === worst ? "worst" : ""))),
      ...heat(names, prompt.matrix, `${caption}, by the oracle`),
      ...(prompt.components.length ? [element("details", { open: componentsAreOpen, ontoggle: (event) => { componentsAreOpen = event.target.open; } }, [
        element("summary", { textContent: "By the components of the oracle" }),
        ...prompt.components.flatMap((component) => heat(names, component.matrix, `${caption}, by ${component.name}`)),
      ])] : []),
    ];
  }

  function heldOutDetail(prompt) {
    return [
      element("p", { className: "note", textContent: "Win rates are against the base policy, over all responses to this prompt; words that the base's response does not have are marked." }),
      element("div", { className: "cards" }, prompt.responses.map((response) => card(response.policy, figures(response), response))),
    ];
  }

  function measures(prompt) {
    if (prompt.t === undefined) return `held out${prompt.rate === null ? "" : `, win rate ${rate(prompt.rate)}`}, ${counted(Math.round(prompt.tokens), "token")}`;
    const parts = [`iteration ${prompt.t}`, `best win rate ${rate(prompt.best)}`, counted(Math.round(prompt.tokens), "token")];
    if (prompt.disagreement !== null) parts.push(`disagreement ${percent(prompt.disagreement)}`);
    if (prompt.cycles !== null) parts.push(`cycles ${percent(prompt.cycles)}`);
    if (prompt.unusual) parts.push(`unusual: ${prompt.unusual}`);
    return parts.join(", ");
  }

  function filterFields(data) {
    const iterations = [...new Set(data.trained.map((prompt) => prompt.t))];
    const fields = {
      t: ["Prompts", choice([
        ...(data.trained.length ? [["", "all iterations"]] : []),
        ...iterations.map((t) => [`${t}`, `iteration ${t}`]),
        ...(data.heldOut.length ? [["held-out", "held out: before and after"]] : []),
      ])],
      order: ["Order", choice([["", "random"], ["cycles", "most cycles"], ["disagreement", "most disagreement"], ["best", "highest best win rate"], ["-best", "lowest best win rate"], ["tokens", "longest"], ["-tokens", "shortest"]])],
      words: ["Text", element("input", { type: "search" })],
      best: ["Best win rate at least", number(0, 1, 0.05)],
      least: ["Mean tokens at least", number(0, 1e6, 1)],
      most: ["Mean tokens at most", number(0, 1e6, 1)],
      disagreement: ["Disagreement at least, %", number(0, 100, 5)],
      cycles: ["Cycles", choice([["", "with or without"], ["some", "with a cyclic triple"], ["none", "without"]])],
    };
    const labels = Object.entries(fields).map(([name, [label, input]]) => {
      input.name = name;
      return element("label", {}, [label, input]);
    });
    const filters = element("fieldset", { className: "filters" }, [element("legend", { textContent: "Filter" }), ...labels]);
    return [filters, Object.fromEntries(Object.entries(fields).map(([name, [, input]]) => [name, input]))];
  }

  function passes(prompt, fields) {
    const value = (name) => (fields[name].value === "" ? null : Number(fields[name].value));
    const words = fields.words.value.toLowerCase();
    const texts = [prompt.prompt, ...prompt.responses.map((response) => response.text)];
    if (value("least") !== null && prompt.tokens < value("least")) return false;
    if (value("most") !== null && prompt.tokens > value("most")) return false;
    if (words && !texts.some((text) => text.toLowerCase().includes(words))) return false;
    if (prompt.t === undefined) return true;
    if (fields.t.value !== "" && prompt.t !== Number(fields.t.value)) return false;
    if (value("best") !== null && !(prompt.best >= value("best"))) return false;
    if (value("disagreement") !== null && !(prompt.disagreement !== null && 100 * prompt.disagreement >= value("disagreement"))) return false;
    if (fields.cycles.value === "some") return prompt.cycles > 0;
    return fields.cycles.value !== "none" || prompt.cycles === 0;
  }

  function browse(home) {
    const data = JSON.parse(document.getElementById(home.dataset.source).textContent);
    const title = home.querySelector("h3").textContent;
    if (data.trained.length + data.heldOut.length === 0) {
      home.append(element("p", { textContent: "There are no responses yet." }));
      return;
    }
    const read = data.read;
    home.append(element("p", {
      className: "note",
      textContent: `${counted(data.trained.length, "prompt")} with the responses that were sampled for training, and `
        + `${counted(data.heldOut.length, "held-out prompt")} with the first response of each policy. ${read.trained} of ${read.trainedOf} sampled and ${read.heldOut} of `
        + `${read.heldOutOf} held-out prompts were read; those shown are chosen at random, except for the few marked as unusual.`,
    }));
    const [filters, fields] = filterFields(data);
    const count = element("p", { className: "note", role: "status", "aria-live": "polite" });
    const list = element("ol", { className: "prompts", "aria-label": `${title}: list of prompts` });
    const detail = element("div", { className: "detail", tabIndex: -1, role: "group", "aria-label": `${title}: one prompt` });
    home.append(filters, count, element("div", { className: "panes" }, [list, detail]));
    const kept = remembered(home.id);
    const key = (prompt) => `${prompt.t ?? "held out"} ${prompt.id}`;
    let listed = [];
    let current = [...data.trained, ...data.heldOut].find((prompt) => key(prompt) === kept.shown) || null;

    function move(text, step) {
      const next = listed[listed.indexOf(current) + step];
      return element("button", {
        type: "button",
        textContent: text,
        disabled: next === undefined,
        onclick: () => {
          show(next, false);
          const button = detail.querySelectorAll(".moves button")[step < 0 ? 0 : 1];
          (button.disabled ? detail : button).focus();
        },
      });
    }

    function show(prompt, takesFocus) {
      current = prompt;
      for (const button of list.querySelectorAll("button")) button.setAttribute("aria-current", button.prompt === prompt);
      detail.replaceChildren(...(prompt ? [
        element("h4", { textContent: "Prompt" }),
        element("div", { className: "text", dir: "auto", tabIndex: 0, role: "group", "aria-label": "text of the prompt", textContent: prompt.prompt }),
        element("div", { className: "note", textContent: `${measures(prompt)}; prompt ${prompt.id}` }),
        ...(prompt.t === undefined ? heldOutDetail(prompt) : sampledDetail(prompt)),
        element("div", { className: "moves" }, [move("Previous prompt", -1), move("Next prompt", 1)]),
      ] : [element("p", { textContent: "No prompt passes these filters." })]));
      if (takesFocus) detail.focus();
    }

    function renew() {
      const source = fields.t.value === "held-out" ? data.heldOut : data.trained;
      listed = source.filter((prompt) => passes(prompt, fields));
      const order = fields.order.value.replace("-", "");
      const sign = fields.order.value.startsWith("-") ? 1 : -1;
      const sortKey = (prompt) => (order === "best" ? prompt.best ?? prompt.rate : prompt[order]) ?? -1;
      if (order) listed.sort((a, b) => sign * (sortKey(a) - sortKey(b)));
      count.textContent = `${listed.length} of ${counted(source.length, "prompt")} on this page` + (listed.length > MAX_LISTED ? `; the first ${MAX_LISTED} are listed` : "");
      list.replaceChildren(...listed.slice(0, MAX_LISTED).map((prompt) => {
        const button = element("button", { type: "button", onclick: () => show(prompt, true) }, [
          element("span", { className: "prompt", dir: "auto", textContent: prompt.prompt.slice(0, 200) }),
          element("span", { className: "measures", textContent: measures(prompt) }),
        ]);
        button.prompt = prompt;
        return element("li", {}, [button]);
      }));
      list.hidden = listed.length === 0;
      show(listed.includes(current) ? current : listed[0], false);
    }

    list.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const buttons = [...list.querySelectorAll("button")];
      const next = buttons[buttons.indexOf(document.activeElement) + step];
      if (step && next) { event.preventDefault(); next.focus(); }
    });
    for (const [name, value] of Object.entries(kept.filters || {})) if (fields[name]) fields[name].value = value;
    if (fields.t.selectedIndex < 0) fields.t.selectedIndex = 0;
    filters.addEventListener("input", renew);
    renew();
    if (fields[kept.focus]) fields[kept.focus].focus({ preventScroll: true });
    addEventListener("pagehide", () => remember(home.id, {
      filters: Object.fromEntries(Object.entries(fields).map(([name, input]) => [name, input.value])),
      shown: current && key(current),
      focus: Object.keys(fields).find((name) => fields[name] === document.activeElement),
    }));
  }

  // Shows all values at the place that is nearest to the pointer.
  function showValues(figure) {
    const { place, series, points } = JSON.parse(figure.dataset.hover);
    const drawing = figure.querySelector(".drawing");
    const svg = drawing.querySelector("svg");
    const tip = element("div", { className: "tip", hidden: true });
    const marks = document.createElementNS(SVG, "g");
    drawing.append(tip);
    svg.append(marks);

    function hide() {
      tip.hidden = true;
      marks.replaceChildren();
    }

    function show(event) {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const distance = ([x, y]) => (x - at.x) ** 2 + (y - at.y) ** 2;
      const nearest = points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
      const shown = points.filter((point) => point[3] === nearest[3]);
      marks.replaceChildren(...shown.map(([x, y]) => {
        const mark = document.createElementNS(SVG, "circle");
        for (const [name, value] of Object.entries({ cx: x, cy: y, r: 5, fill: "none", stroke: "currentColor" })) mark.setAttribute(name, value);
        return mark;
      }));
      tip.textContent = [`${place} ${nearest[3]}`, ...shown.map((point) => `${series[point[2]]}: ${point[4]}`)].join("\n");
      tip.hidden = false;
      const width = svg.clientWidth;
      const x = (nearest[0] / svg.viewBox.baseVal.width) * width;
      tip.style.left = x < width / 2 ? `${x + 12}px` : "";
      tip.style.right = x < width / 2 ? "" : `${drawing.clientWidth - x + 12}px`;
      tip.style.top = `${Math.min((nearest[1] / svg.viewBox.baseVal.width) * width, svg.clientHeight - tip.clientHeight)}px`;
    }

    if (points.length === 0) return;
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", hide);
  }

  document.querySelectorAll(".browser").forEach(browse);
  document.querySelectorAll("figure[data-hover]").forEach(showValues);

  const folds = [...document.querySelectorAll("details")].filter((fold) => !fold.closest(".detail"));
  const place = (fold) => fold.closest("[id]").id;
  const opened = remembered("opened");
  for (const fold of folds) fold.open = Boolean(opened[place(fold)]);
  addEventListener("pagehide", () => remember("opened", Object.fromEntries(folds.map((fold) => [place(fold), fold.open]))));

  const seconds = Number(document.body.dataset.reload);
  if (seconds) setInterval(() => { if (document.getElementById("follow").checked) location.reload(); }, 1000 * seconds);
})();
