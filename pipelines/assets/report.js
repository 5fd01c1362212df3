// Shows the rows in #data: grid, filters, one clip, scores, rejected rows. Text from rows is only
// ever set as text. Clips load and play when they are in view.

const PAGE = 24;

let listed = []; // the clips that pass the filters, as far as they are known
let total = 0;
let asked = 0; // number of the newest query: answers to older ones are dropped
let opened = null;

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value, textContent: text })));
}

const short = (value) => (Math.abs(value) >= 1e5 ? value.toExponential(2) : String(+value.toPrecision(4)));

// --- rows -----------------------------------------------------------------------------------

function wanted() {
  const form = Object.fromEntries(["kind", "licence", "text", "score", "min", "max", "sort"].map((id) => [id, $(id).value]));
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

async function refresh(append) {
  const mine = (asked += 1);
  try {
    const found = await query(wanted(), append ? listed.length : 0);
    if (mine !== asked) return;
    if (!append) { $("grid").replaceChildren(); cards.disconnect(); for (const p of [...players]) if (p !== opened?.player) p.stop(); listed = []; }
    total = found.total;
    listed.push(...found.rows);
    $("grid").append(...found.rows.map(card));
  } catch (error) {
    $("count").textContent = String(error.message || error);
    return;
  }
  const all = data.total.toLocaleString("en");
  const sample = !serving && data.clips.length < data.total ? `; this page holds ${data.clips.length} of ${all}` : "";
  $("empty").hidden = total > 0;
  $("empty").firstChild.textContent = data.total ? `None of the ${all} clips passes the filters.` : "There is no clip in here.";
  $("empty").lastChild.hidden = !data.total;
  if (!total) $("count").textContent = `0 of ${all} clips`;
  else $("count").textContent = `${listed.length} of ${total.toLocaleString("en")} clips shown${sample}`;
  $("more").hidden = listed.length >= total;
}

const cards = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const element = entry.target;
    if (entry.isIntersecting && !element.player) start(element);
    else if (!entry.isIntersecting && element.player) { element.player.stop(); element.player = null; }
  }
}, { rootMargin: "200px" });

function names(clip) {
  const all = state.layers === "all" || (clip.flat && !SHOWN.includes(state.layers));
  return all ? SHOWN : [state.layers];
}

function card(clip) {
  const aspect = clip.width ? clip.width / clip.height : 1.5;
  const canvas = make("canvas", { width: Math.max(1, Math.round(96 * aspect)), height: 96 });
  const stage = make("div", { className: "stage" }, canvas);
  const name = make("p", { className: "title" }, make("span", { className: "tag", textContent: clip.kind }), make("code", { textContent: clip.id.slice(0, 40) }));
  const score = [$("sort").value.slice(1), $("score").value].find((one) => clip.scores[one] !== undefined);
  if (score) name.insertBefore(make("small", { textContent: `${score} ${short(clip.scores[score])}` }), name.lastChild);
  const prompt = clip.prompts.blended || clip.prompts.foreground || "(no prompt)";
  const element = make("article", { className: "card", tabIndex: 0, clip }, stage, name,
    make("p", { className: "prompt", dir: "auto", textContent: prompt.slice(0, 400) }),
    make("p", { className: "source", dir: "auto", textContent: clip.source.slice(-200) }));
  element.setAttribute("aria-label", `${clip.kind} clip ${clip.id.slice(0, 40)}`);
  element.onclick = () => open(clip);
  labels(element);
  cards.observe(element);
  return element;
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
  const canvas = element.querySelector("canvas");
  const failed = (text) => {
    element.querySelector(".stage").replaceChildren(make("p", { className: "problem", textContent: "No preview: " + text.slice(0, 300) }));
  };
  element.player = new Player(element.clip, false, failed);
  element.player.targets = [[canvas, names(element.clip)]];
  const stage = element.querySelector(".stage");
  stage.classList.add("waiting");
  element.player.ready.then(() => stage.classList.remove("waiting"));
}

// --- one clip -------------------------------------------------------------------------------

function open(clip) {
  opened?.player.stop();
  const player = new Player(clip, true, (text) => {
    $("panels").replaceChildren(make("p", { className: "problem", textContent: "No preview: " + text.slice(0, 300) }));
  });
  opened = { clip, player };
  $("detail-title").textContent = `${clip.kind} ${clip.id.slice(0, 60)}`;
  panels();
  facts(clip);
  $("time").hidden = clip.num_frames === 1;
  player.ready.then(() => { if (player.about) $("frame").max = player.about.frames - 1; });
  const place = listed.indexOf(clip);
  $("previous").setAttribute("aria-disabled", place <= 0);
  $("next").setAttribute("aria-disabled", place < 0 || place >= listed.length - 1);
  if (!$("detail").open) $("detail").showModal();
}

function panels() {
  const some = state.layers === "all" ? (opened.clip.flat ? SHOWN : PANELS) : names(opened.clip);
  const canvases = some.map(() => make("canvas", { width: 3, height: 2 }));
  $("panels").className = some.length > 1 ? "" : "one";
  $("panels").replaceChildren(...some.map((name, i) => {
    const text = name === "difference" ? "difference from recomposed, x8: black is exact" : name;
    return make("figure", {}, canvases[i], make("figcaption", { textContent: text }));
  }));
  canvases.forEach((canvas, i) => {
    canvas.onclick = () => change({ layers: some.length > 1 ? some[i] : "all" });
  });
  opened.player.targets = some.map((name, i) => [canvases[i], [name]]);
  opened.player.draw(true);
}

function facts(clip) {
  const span = clip.end > clip.start ? `${short(clip.start)} to ${short(clip.end)} s` : "";
  const size = clip.num_frames ? `${clip.num_frames} frames, ${clip.width}x${clip.height}, ${short(clip.fps)} fps` : "";
  const rows = [
    ...SHOWN.map((layer) => [layer === "alpha" ? "" : layer + " prompt", clip.prompts[layer]]),
    ["source", clip.source], ["span", span], ["licence", clip.licence === undefined ? "" : clip.licence || "not stated"],
    ["attribution", clip.attribution], ["parents", (clip.parents || []).join(", ")], ["size", size],
    ["alpha", clip.alpha_kind], ["background", clip.background_kind], ["recipe", clip.recipe], ["id", clip.id],
  ];
  $("facts").replaceChildren(...rows.filter(([name, value]) => name && value).flatMap(([name, value]) =>
    [make("dt", { textContent: name }), make("dd", { dir: "auto", textContent: value })]));
  $("detail-scores").replaceChildren(...Object.entries(clip.scores).flatMap(([name, value]) => {
    const shape = data.histograms[name];
    const picture = shape ? [bars(shape, value)] : [];
    return [make("dt", { textContent: name }), make("dd", {}, short(value), ...picture)];
  }));
}

function showFrame(player) {
  const frame = player.frame();
  if ($("frame") !== document.activeElement) $("frame").value = frame;
  $("at").textContent = `${frame + 1} / ${player.about.frames}`;
}

function neighbour(step) {
  const place = listed.indexOf(opened.clip) + step;
  if (place >= 0 && place < listed.length) open(listed[place]);
}

function closed() {
  opened?.player.stop();
  const element = [...$("grid").children].find((c) => c.clip === opened?.clip);
  opened = null;
  element?.focus();
}

// --- scores and rejected rows ---------------------------------------------------------------

function bars(shape, mark) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${shape.bins.length} 10`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const most = Math.max(...shape.bins, 1);
  const here = mark === undefined ? -1 : Math.max(0, Math.min(shape.bins.length - 1, Math.floor(((mark - shape.low) / (shape.high - shape.low)) * shape.bins.length)));
  shape.bins.forEach((count, i) => {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = i === here ? Math.max(2, (10 * count) / most) : (10 * count) / most;
    for (const [name, value] of Object.entries({ x: i + 0.1, y: 10 - height, width: 0.8, height })) rect.setAttribute(name, value);
    if (i === here) rect.setAttribute("class", "here");
    svg.append(rect);
  });
  return svg;
}

function histograms() {
  const all = Object.entries(data.histograms);
  $("scores-box").hidden = !all.length;
  $("histograms").replaceChildren(...all.map(([name, shape]) => {
    const head = make("span", {}, name);
    const middle = make("small", { textContent: "median " + short(shape.median) });
    const ends = make("span", {}, make("small", { textContent: short(shape.low) }), make("small", { textContent: short(shape.high) }));
    const button = make("button", { type: "button", className: "histogram" }, head, middle, bars(shape), ends);
    button.onclick = () => { $("score").value = name; $("sort").value = "-" + name; mark(); refresh(false); };
    button.dataset.score = name;
    return button;
  }));
}

function mark() {
  for (const button of $("histograms").children) button.setAttribute("aria-pressed", button.dataset.score === $("score").value);
  const { kind, licence, text, score, min, max } = wanted();
  const set = [kind, licence, text, score && min + max].filter(Boolean).length;
  $("filters-title").textContent = set ? `Filters (${set} set)` : "Filters";
}

async function rejected(append) {
  const reason = $("reason").value;
  const offset = append ? $("rejected").children.length : 0;
  let rows = data.rejected || [];
  let count = data.rejected_total;
  if (serving) ({ rows, total: count } = await (await fetch("rejected?" + new URLSearchParams({ reason, offset, count: 100 }))).json());
  else {
    const some = rows.filter((row) => !reason || row.general === reason);
    [rows, count] = [some.slice(offset, offset + 100), some.length];
  }
  const cells = rows.map((row) => {
    const span = row.start != null ? `${short(row.start)} to ${short(row.end)} s` : "";
    const scores = Object.entries(row.quality).map(([name, value]) => `${name} ${short(value)}`).join(", ");
    return make("tr", {}, ...[row.uri, row.stage, row.reason, span, scores].map((text) => make("td", { dir: "auto", textContent: text ?? "" })));
  });
  if (append) $("rejected").append(...cells);
  else $("rejected").replaceChildren(...cells);
  $("more-rejected").hidden = $("rejected").children.length >= count;
}

// --- controls -------------------------------------------------------------------------------

function redraw() {
  $("play").textContent = $("detail-play").textContent = state.playing ? "Pause" : "Play";
  $("layers").value = $("detail-layers").value = state.layers;
  $("backing").value = $("detail-backing").value = state.backing;
  for (const element of $("grid").children) {
    const stage = element.querySelector(".stage");
    if (stage.querySelector("canvas")) labels(element);
    if (element.player) element.player.targets = [[element.querySelector("canvas"), names(element.clip)]];
  }
  if (opened) panels();
  for (const player of players) { player.play(); player.draw(true); }
}

function change(values) { Object.assign(state, values); redraw(); }

function step(way) {
  change({ playing: false });
  const some = opened ? [opened.player] : [...players];
  for (const player of some) if (player.media) player.seek(player.frame() + way);
}

function move(key) {
  const all = [...$("grid").children];
  const here = all.indexOf(document.activeElement.closest?.(".card"));
  if (here < 0) { all[0]?.focus(); return; }
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
  $("name").textContent = data.name;
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
  (data.clips || []).forEach((clip, place) => { clip.place = place; });
  histograms();

  $("size").oninput = () => document.documentElement.style.setProperty("--card-width", $("size").value + "px");
  $("help-button").onclick = () => { $("help").hidden = !$("help").hidden; $("help-button").setAttribute("aria-expanded", !$("help").hidden); };
  const narrow = matchMedia("(max-width: 640px)");
  narrow.onchange = () => { $("filters-box").open = !narrow.matches; };
  narrow.onchange();
  $("filters").oninput = () => { mark(); refresh(false); };
  $("filters").onsubmit = (event) => event.preventDefault();
  $("filters").onreset = () => setTimeout(() => { mark(); refresh(false); });
  $("more").onclick = () => refresh(true);
  $("reason").onchange = () => rejected(false);
  $("more-rejected").onclick = () => rejected(true);
  $("previous").onclick = () => neighbour(-1);
  $("next").onclick = () => neighbour(1);
  $("close").onclick = () => $("detail").close();
  $("detail").onclose = closed;
  $("frame").oninput = () => { change({ playing: false }); opened?.player.seek(+$("frame").value); };
  new IntersectionObserver((entries) => { if (entries[0].isIntersecting && !$("more").hidden) refresh(true); }).observe($("more"));
  redraw();
  refresh(false);
  rejected(false);
  tick();
}

setUp();
