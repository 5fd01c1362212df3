// Shows the rows in #data: grid, filters, controls. Text from rows is only ever set as text. Clips
// load and play when they are in view.

const PAGE = 24;

let listed = []; // the clips that pass the filters, as far as they are known
let total = 0;
let asked = 0; // number of the newest query: answers to older ones are dropped
let running = null; // the newest query, until it is answered

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value, textContent: text })));
}

const short = (value) => (Math.abs(value) >= 1e5 ? value.toExponential(2) : String(+value.toPrecision(4)));

// --- rows -----------------------------------------------------------------------------------

function wanted() {
  const form = Object.fromEntries(["kind", "licence", "source", "text", "score", "min", "max", "sort"].map((id) => [id, $(id).value]));
  form.text = form.text.trim().toLowerCase();
  return form;
}

async function query(filters, offset) {
  if (serving) {
    const answer = await fetch("rows?" + new URLSearchParams({ ...filters, offset, count: PAGE }));
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  }
  const { score, min, max } = filters;
  const inside = (value) => value !== undefined && (min === "" || value >= +min) && (max === "" || value <= +max);
  const passing = data.clips.filter((clip) =>
    (!filters.kind || clip.kind === filters.kind) &&
    (!filters.licence || (clip.licence || "not stated") === filters.licence) &&
    (!filters.source || clip.source === filters.source) &&
    (!filters.text || [clip.id, clip.source, ...Object.values(clip.prompts)].join("\n").toLowerCase().includes(filters.text)) &&
    (!score || (min === "" && max === "") || inside(clip.scores[score])));
  return { total: passing.length, rows: sorted(passing, filters.sort).slice(offset, offset + PAGE) };
}

function sorted(clips, order) {
  if (!order) return clips;
  const [way, name] = [order[0] === "-" ? -1 : 1, order.slice(1)];
  const key = (clip) => (["source", "kind", "id"].includes(name) ? clip[name] : clip.scores[name]);
  const known = clips.filter((clip) => key(clip) !== undefined);
  known.sort((a, b) => way * (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0));
  return [...known, ...clips.filter((clip) => key(clip) === undefined)];
}

// A new list (of other filters), or more of this one. More is never asked for while a list comes.
function refresh(append) {
  if (append && running) return running;
  const mine = (asked += 1);
  running = found(append, mine).finally(() => { if (mine === asked) running = null; });
  return running;
}

async function found(append, mine) {
  let answer = null;
  let problem = "";
  try {
    answer = await query(wanted(), append ? listed.length : 0);
  } catch (error) {
    problem = said(error);
  }
  if (mine !== asked) return;
  if (!append) {
    cards.disconnect();
    for (const player of [...players]) if (player !== opened?.player) player.stop();
    $("grid").replaceChildren();
    [listed, total] = [[], 0];
    emptied();
  }
  if (answer) {
    total = answer.total;
    listed.push(...answer.rows);
    show(answer.rows);
    if (!append) roving($("grid").firstElementChild);
  }
  counted(problem);
  if (answer) { bottom.unobserve($("more")); bottom.observe($("more")); } // it may still be in view
}

function counted(problem) {
  const all = data.total.toLocaleString("en");
  const most = total.toLocaleString("en");
  const sample = !serving && data.clips.length < data.total ? `; this page holds ${data.clips.length} of ${all}` : "";
  const passing = setFilters() ? `the ${most} clips that pass the filters` : `${most} clips`;
  $("empty").hidden = total > 0 || Boolean(problem);
  $("empty").firstChild.textContent = data.total ? `None of the ${all} clips passes the filters.` : "There is no clip in here.";
  $("empty").lastChild.hidden = !data.total;
  $("count").classList.toggle("failed", Boolean(problem));
  $("count").textContent = problem || (total ? `${listed.length} of ${passing} shown${sample}` : `0 of ${all} clips`);
  $("more").textContent = problem ? "Try again" : "Show more clips";
  $("more").hidden = !problem && first + $("grid").children.length >= total;
}

const bottom = new IntersectionObserver((entries) => {
  if (entries.at(-1).isIntersecting && first + $("grid").children.length < total) {
    if (append() === null) { bottom.unobserve($("more")); bottom.observe($("more")); }
  }
}, { rootMargin: "400px" });

const cards = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const element = entry.target;
    if (entry.isIntersecting && !element.player) start(element);
    else if (!entry.isIntersecting && element.player) leave(element);
  }
}, { rootMargin: "200px" });

function names(clip) {
  const all = state.layers === "all" || (clip.flat && !SHOWN.includes(state.layers));
  const some = all ? SHOWN : [state.layers];
  if (!data.against) return some;
  if (all) return ["blended", "B blended", "foreground", "B foreground"];
  return some.flatMap((name) => (SHOWN.includes(name) ? [name, name === "alpha" ? "alpha of B foreground" : "B " + name] : [name]));
}

function card(clip) {
  const name = make("p", { className: "title" }, make("span", { className: "tag", textContent: clip.kind }));
  for (const score of new Set([$("sort").value.slice(1), $("score").value])) {
    if (clip.scores[score] !== undefined) name.append(make("small", { textContent: `${score} ${short(clip.scores[score])}` }));
  }
  name.append(make("code", { textContent: clip.id.slice(0, 40) }));
  const prompt = (clip.prompts.blended || clip.prompts.foreground || "(no prompt)").slice(0, 400);
  const element = make("article", { className: "card", tabIndex: -1, clip }, make("div", { className: "stage" }), name,
    make("p", { className: "prompt", dir: "auto", textContent: prompt }),
    make("p", { className: "source", dir: "auto", textContent: clip.source.slice(-200) }));
  element.setAttribute("role", "button");
  element.setAttribute("aria-haspopup", "dialog");
  element.setAttribute("aria-label", `${clip.kind} clip: ${prompt}, of ${clip.source.slice(-200)}`);
  element.onclick = () => open(clip);
  mine(element);
  setStage(element);
  cards.observe(element);
  return element;
}

// Of the cards one is a tab stop, the one that had the focus last; arrows move between them.
function roving(element) {
  for (const other of $("grid").querySelectorAll(".card[tabindex='0']")) other.tabIndex = -1;
  if (element) element.tabIndex = 0;
}

function setStage(element) {
  const canvas = make("canvas", { width: 3, height: 2 });
  canvas.style.aspectRatio = element.clip.width ? `${element.clip.width} / ${element.clip.height}` : "3 / 2";
  element.querySelector(".stage").replaceChildren(canvas);
  labels(element);
}

function labels(element) {
  const stage = element.querySelector(".stage");
  for (const old of stage.querySelectorAll("span")) old.remove();
  const some = names(element.clip);
  some.forEach((name, place) => {
    const span = make("span", { textContent: name });
    span.style.left = some.length > 1 && place % 2 ? "50%" : "0";
    span.style.top = place > 1 ? "50%" : "0";
    stage.append(span);
  });
}

function start(element) {
  if (!element.querySelector("canvas")) setStage(element); // a preview failed; now it may not
  const stage = element.querySelector(".stage");
  const player = new Player(element.clip, false, (text) => {
    stage.replaceChildren(make("p", { className: "problem", textContent: "No preview: " + text.slice(0, 300) }));
    player.targets = [];
  });
  element.player = player;
  player.targets = [[element.querySelector("canvas"), names(element.clip)]];
  stage.classList.add("waiting");
  player.ready.then(() => { if (element.player === player) stage.classList.remove("waiting"); });
}

function leave(element) {
  element.player.stop();
  element.player = null;
  const canvas = element.querySelector("canvas");
  if (canvas) [canvas.width, canvas.height] = [3, 2]; // pictures of thousands of cards fill the memory
}

// --- controls -------------------------------------------------------------------------------

function redraw() {
  $("play").textContent = $("detail-play").textContent = state.playing ? "Pause" : "Play";
  $("layers").value = $("detail-layers").value = state.layers;
  $("backing").value = $("detail-backing").value = state.backing;
  for (const element of $("grid").children) {
    const canvas = element.querySelector("canvas");
    if (canvas) labels(element);
    if (canvas && element.player) element.player.targets = [[canvas, names(element.clip)]];
  }
  if (opened) panels();
  for (const player of players) { player.play(); player.draw(true); }
}

function change(values) { Object.assign(state, values); redraw(); }

function step(way) {
  change({ playing: false });
  for (const player of opened ? [opened.player] : players) if (player.media) player.seek(player.frame() + way);
}

function move(key) {
  const all = [...$("grid").children];
  const here = all.indexOf(document.activeElement.closest?.(".card"));
  if (here < 0) { (all.find((element) => element.tabIndex === 0) ?? all[0])?.focus(); return; }
  const columns = Math.max(1, all.filter((c) => c.offsetTop === all[0].offsetTop).length);
  const there = here + { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  all[Math.max(0, Math.min(all.length - 1, there))].focus();
}

document.addEventListener("keydown", (event) => {
  const at = event.target.tagName;
  if (event.ctrlKey || event.altKey || event.metaKey || at === "SELECT" || at === "INPUT") return;
  const key = event.key;
  if (key === " " && at !== "BUTTON" && at !== "SUMMARY") change({ playing: !state.playing });
  else if (/^[0-6]$/.test(key)) change({ layers: key === "0" ? "all" : PANELS[key - 1] });
  else if (key === "b") change({ backing: BACKINGS[(BACKINGS.indexOf(state.backing) + 1) % BACKINGS.length] });
  else if (key === "f") flag(opened?.clip ?? event.target.closest?.(".card")?.clip);
  else if (key === "?") $("help-button").click();
  else if (key === "," || key === ".") step(key === "," ? -1 : 1);
  else if (key === "Enter" && event.target.clip) open(event.target.clip);
  else if (opened && (key === "ArrowLeft" || key === "ArrowRight")) neighbour(key === "ArrowLeft" ? -1 : 1);
  else if (!opened && key.startsWith("Arrow")) move(key);
  else return;
  event.preventDefault();
});

function setUp() {
  document.title = `${data.name} - layered clips`;
  $("name").textContent = data.against ? `A: ${data.name}, B: ${data.against}` : data.name;
  const kinds = Object.entries(data.kinds).map(([kind, count]) => `${count.toLocaleString("en")} ${kind}`);
  $("summary").textContent = `${data.total.toLocaleString("en")} clips (${kinds.join(", ") || "none"}), ${data.rejected_total.toLocaleString("en")} rejected${data.note ? "; " + data.note : ""}`;
  for (const id of ["layers", "detail-layers"]) {
    options($(id), [["all", "all layers"], ...PANELS.map((name) => [name, name])]);
    $(id).onchange = () => change({ layers: $(id).value });
  }
  for (const id of ["backing", "detail-backing"]) {
    options($(id), BACKINGS.map((name) => [name, name]));
    $(id).onchange = () => change({ backing: $(id).value });
  }
  for (const id of ["play", "detail-play"]) $(id).onclick = () => change({ playing: !state.playing });
  options($("kind"), [["", "all"], ...Object.keys(data.kinds).map((kind) => [kind, kind])]);
  options($("licence"), [["", "all"], ...Object.entries(data.licences).map(([name, count]) => [name, `${name} (${count})`])]);
  const scores = Object.keys(data.histograms);
  options($("score"), [["", "any"], ...scores.map((name) => [name, name])]);
  const orders = [["+source", "source"], ["+kind", "kind"], ...scores.flatMap((name) => [["+" + name, name + ", low first"], ["-" + name, name + ", high first"]])];
  options($("sort"), [["", "as stored"], ...orders]);
  options($("reason"), [["", "all"], ...Object.entries(data.reasons).map(([name, count]) => [name, `${name} (${count})`])]);
  $("rejected-title").textContent = `Rejected (${data.rejected_total.toLocaleString("en")})`;
  $("rejected-box").hidden = !data.rejected_total;
  $("rejected-box").open = !data.total; // nothing else to see
  (data.clips || []).forEach((clip, place) => { clip.place = place; });
  setUpCare();
  histograms();

  $("size").oninput = () => document.documentElement.style.setProperty("--card-width", $("size").value + "px");
  $("help-button").onclick = () => { $("help").hidden = !$("help").hidden; $("help-button").setAttribute("aria-expanded", !$("help").hidden); };
  const narrow = matchMedia("(max-width: 640px)");
  narrow.onchange = () => { $("filters-box").open = !narrow.matches; };
  narrow.onchange();
  $("filters").oninput = () => { nameSource(); mark(); refresh(false); };
  $("filters").onsubmit = (event) => event.preventDefault();
  $("filters").onreset = () => setTimeout(() => { nameSource(); mark(); refresh(false); });
  $("grid").addEventListener("focusin", (event) => roving(event.target.closest(".card")));
  $("more").onclick = append;
  $("reason").onchange = () => rejected(false);
  $("more-rejected").onclick = () => rejected(true);
  $("previous").onclick = () => neighbour(-1);
  $("next").onclick = () => neighbour(1);
  $("close").onclick = () => $("detail").close();
  $("detail").onclose = closed;
  $("frame").oninput = () => { change({ playing: false }); opened?.player.seek(+$("frame").value); };
  redraw();
  mark();
  refresh(false);
  rejected(false);
  tick();
}

setUp();
