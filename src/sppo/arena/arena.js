"use strict";
// Shows one pair after the other. A vote is kept here until the server has written it, and sent again if need be.
(() => {
  const KEYS = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", 0: "tie", t: "tie", b: "both_bad", s: "skip", u: "undo" };
  const token = document.querySelector("meta[name=token]").content;
  const at = (id) => document.getElementById(id);
  const buttons = [...document.querySelectorAll("[data-choice]")];
  const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
  const earlier = []; // the pairs that were voted on, which can be undone
  let pair = null;
  let busy = true;

  function element(tag, properties = {}, children = []) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function say(text) {
    at("status").textContent = text;
  }

  function setReady(ready) {
    busy = !ready;
    // unlike `disabled`, this leaves the focus where it is
    for (const button of buttons) button.setAttribute("aria-disabled", String(busy || !pair));
    at("undo").setAttribute("aria-disabled", String(busy || earlier.length === 0));
    document.body.dataset.ready = String(!busy && Boolean(pair));
  }

  async function ask(path, body) {
    for (;;) {
      try {
        const answer = await fetch(path, {
          method: "POST",
          headers: { "Content-Type": "application/json", "X-Sppo-Token": token },
          body: JSON.stringify(body),
        });
        const content = await answer.json();
        if (answer.status < 500) return { status: answer.status, ...content };
        say(`${content.problem}; trying again`);
      } catch {
        say("The server does not answer. Your vote is kept here and sent again.");
      }
      await wait(500);
    }
  }

  // The server has escaped the responses' HTML, and the page's policy allows no script but its own.
  function showPair() {
    at("prompt").textContent = pair ? pair.prompt : "";
    at("prompt").className = "text plain";
    for (const side of ["left", "right"]) {
      const isPlain = at("plain").checked;
      at(side).className = `text${isPlain ? " plain" : ""}`;
      if (!pair || isPlain) at(side).textContent = pair ? pair[side] : "";
      else at(side).innerHTML = pair.html[side];
    }
    for (const id of ["prompt", "left", "right"]) at(id).scrollTop = 0;
  }

  async function next(note = "") {
    const answer = await ask("/pair", { voter: at("voter").value });
    if (answer.problem) { say(answer.problem); return; }
    pair = answer.done ? null : answer;
    showPair();
    at("progress").max = answer.total;
    at("progress").value = answer.seen;
    at("seen").textContent = `${answer.seen} of ${answer.total}`;
    say(`${note}${pair ? "" : "You have seen every pair, thank you. "}Your votes that count: ${answer.votes}.`);
    document.body.dataset.votes = String(answer.votes);
    setReady(true);
  }

  async function send(vote) {
    sessionStorage.setItem("pending", JSON.stringify(vote));
    const answer = await ask("/vote", vote);
    if (answer.status === 403) { say(`${answer.problem}; your vote is kept here until then`); return; }
    sessionStorage.removeItem("pending");
    await next(answer.problem ? `Your last vote does not count: ${answer.problem}. ` : "");
  }

  async function choose(choice) {
    if (busy || !pair) return;
    setReady(false);
    earlier.push(pair);
    await send({ seal: pair.seal, choice });
  }

  async function undo() {
    if (busy || earlier.length === 0) return;
    setReady(false);
    const last = earlier.pop();
    const answer = await ask("/undo", { seal: last.seal });
    if (answer.problem) { await next(`Your last choice could not be undone: ${answer.problem}. `); return; }
    await next("Your last choice is undone. ");
    pair = last;
    showPair();
    setReady(true);
  }

  function matrix(results) {
    const { names } = results;
    const heads = names.map((name) => element("th", { scope: "col", textContent: name }));
    const cell = (rate, isSelf) => element("td", { textContent: isSelf ? "-" : rate ? rate.mean.toFixed(3) : "not compared" },
      rate ? [element("small", { textContent: `${rate.low.toFixed(3)} to ${rate.high.toFixed(3)}` }), element("small", { textContent: `prompts: ${rate.prompts}` })] : []);
    const rows = results.win_rates.map((row, i) =>
      element("tr", {}, [element("th", { scope: "row", textContent: names[i] }), ...row.map((rate, j) => cell(rate, i === j))]));
    return element("div", { className: "scroll", tabIndex: 0 }, [element("table", {}, [
      element("caption", { textContent: "The share of votes by which the policy of the row is preferred to that of the column, with 95% intervals over prompts; ties count half" }),
      element("thead", {}, [element("tr", {}, [element("td"), ...heads])]),
      element("tbody", {}, rows),
    ])]);
  }

  async function showResults() {
    const results = await ask("/results", {});
    if (results.problem) { say(results.problem); return; }
    const agreed = results.agreement;
    const percent = (share) => `${(100 * share).toFixed(1)}%`;
    const lines = [
      `Votes: ${results.votes}; people: ${results.people.length}.`,
      ...results.words,
      agreed
        ? `People agree with the oracle in ${percent(agreed.mean)} [${percent(agreed.low)}, ${percent(agreed.high)}] of the ${agreed.votes} votes in which neither sees a tie.`
        : "The oracle has not been asked about any of these votes.",
    ];
    const paragraphs = lines.map((text) => element("p", { textContent: text }));
    at("figures").replaceChildren(...(results.names.length ? [matrix(results)] : []), ...paragraphs);
  }

  for (const button of buttons) button.addEventListener("click", () => choose(button.dataset.choice));
  at("undo").addEventListener("click", undo);
  document.addEventListener("keydown", (event) => {
    const choice = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    const field = event.target.closest("input, .text");
    if (event.target === at("voter")) {
      if (event.key === "Enter") at("voter").blur(); // which commits the name, so that keys are votes again
      return;
    }
    const scrolls = event.key.startsWith("Arrow") && field;
    if (!choice || event.repeat || event.ctrlKey || event.metaKey || event.altKey || scrolls) return;
    event.preventDefault();
    if (choice === "undo") undo();
    else choose(choice);
  });
  at("results").addEventListener("toggle", () => { if (at("results").open) showResults(); });
  at("plain").checked = localStorage.getItem("plain") === "true";
  at("plain").addEventListener("change", () => {
    localStorage.setItem("plain", String(at("plain").checked));
    showPair();
  });
  at("voter").value = localStorage.getItem("voter") || at("voter").value;
  at("voter").addEventListener("change", async () => {
    localStorage.setItem("voter", at("voter").value);
    earlier.length = 0; // the choices of somebody else are theirs to undo
    setReady(false);
    await next(`You vote as ${at("voter").value}. `);
  });
  (async () => {
    setReady(false);
    const pending = sessionStorage.getItem("pending");
    await (pending ? send(JSON.parse(pending)) : next());
  })();
})();
