// One clip with its scores, and the rejected rows. Text from rows is only ever set as text.

let opened = null; // the clip that is open, and its player

function open(clip) {
  opened?.player.stop();
  const player = new Player(clip, true, () => { if (opened?.player === player) panels(); });
  opened = { clip, player };
  $("detail-title").textContent = `${clip.kind} ${clip.id.slice(0, 60)}`;
  panels();
  facts(clip);
  why(clip);
  flags();
  $("time").hidden = clip.num_frames === 1;
  $("at").textContent = "";
  $("panels").classList.add("waiting");
  player.ready.then(() => {
    if (opened?.player !== player) return;
    $("panels").classList.remove("waiting");
    if (player.about) $("frame").max = player.about.frames - 1;
    if (player.about?.panels.length > PANELS.length) panels();
  });
  const place = placeOf(clip);
  $("previous").setAttribute("aria-disabled", place <= 0);
  $("next").setAttribute("aria-disabled", place < 0 || place >= total - 1);
  $("detail").scrollTop = 0;
  if ($("detail").open) return;
  $("panels").before($("help"));
  $("detail").showModal();
  $("detail").focus(); // not a button, which the space bar would press
}

const placeOf = (clip) => listed.findIndex((other) => other.index === clip.index);

function panels() {
  const { clip, player } = opened;
  if (player.problem) {
    $("panels").className = "one";
    $("panels").replaceChildren(make("p", { className: "problem", textContent: "No preview: " + player.problem.slice(0, 300) }));
    return;
  }
  const singles = player.about?.panels.slice(PANELS.length) ?? []; // known when it has come
  const some = state.layers === "all" ? [...(clip.flat ? SHOWN : PANELS), ...singles] : names(clip);
  const canvases = some.map((name) => {
    const canvas = make("canvas", { width: 3, height: 2 });
    canvas.style.aspectRatio = clip.width ? `${clip.width} / ${clip.height}` : "3 / 2";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", name);
    return canvas;
  });
  $("panels").classList.toggle("one", some.length === 1);
  $("panels").replaceChildren(...some.map((name, i) => {
    const text = name === "difference" ? "difference from recomposed, x8: black is exact" : name;
    return make("figure", {}, canvases[i], make("figcaption", { textContent: text }));
  }));
  canvases.forEach((canvas, i) => {
    if (PANELS.includes(some[i])) canvas.onclick = () => change({ layers: some.length > 1 ? some[i] : "all" });
  });
  player.targets = some.map((name, i) => [canvases[i], [name]]);
  player.draw(true);
}

function facts(clip) {
  const span = clip.end > clip.start ? `${short(clip.start)} to ${short(clip.end)} s` : "";
  const length = clip.num_frames > 1 ? `${clip.num_frames} frames, ${short(clip.fps)} fps, ` : "still, ";
  const size = clip.num_frames ? `${length}${clip.width}x${clip.height}` : "";
  const rows = [
    ...SHOWN.map((layer) => [layer === "alpha" ? "" : layer + " prompt", clip.prompts[layer]]),
    ["source", clip.source], ["span", span], ["licence", clip.licence === undefined ? "" : clip.licence || "not stated"],
    ["attribution", clip.attribution], ["parents", (clip.parents || []).join(", ")], ["size", size],
    ["alpha", clip.alpha_kind], ["background", clip.background_kind], ...Object.entries(clip.more ?? {}), ["recipe", clip.recipe], ["id", clip.id],
  ];
  $("facts").replaceChildren(...rows.filter(([name, value]) => name && value).flatMap(([name, value]) =>
    [make("dt", { textContent: name }), make("dd", { dir: "auto", textContent: value })]));
  $("detail-scores").replaceChildren(...Object.entries(clip.scores).map(([name, value]) => {
    const shape = data.histograms[name];
    return make("div", { title: shape?.says ?? "" }, make("dt", { textContent: name }), make("dd", { textContent: short(value) }), ...(shape ? [bars(shape, value)] : []));
  }));
}

function showFrame(player) {
  const frame = player.frame(player.time);
  const text = `${frame + 1} / ${player.about.frames}`;
  if ($("frame") !== document.activeElement) $("frame").value = frame;
  if ($("at").textContent === text) return;
  $("at").textContent = text;
  $("frame").setAttribute("aria-valuetext", `frame ${frame + 1} of ${player.about.frames}`);
}

async function neighbour(step) {
  const from = opened;
  const place = placeOf(from.clip) + step;
  if (place === listed.length && place < total) await refresh(true);
  if (opened === from && place >= 0 && place < listed.length) open(listed[place]);
}

function closed() {
  if ($("detail").open) return; // another clip was opened before this was told
  opened?.player.stop();
  const element = [...$("grid").children].find((other) => other.clip.index === opened?.clip.index);
  opened = null;
  $("help-place").append($("help"));
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
    const button = make("button", { type: "button", className: "histogram", title: shape.says }, head, middle, bars(shape), ends);
    button.onclick = () => { $("score").value = name; $("sort").value = "-" + name; mark(); refresh(false); };
    button.dataset.score = name;
    return button;
  }));
}

function setFilters() {
  const { kind, licence, source, text, score, min, max } = wanted();
  return [kind, licence, source, text, score && min + max].filter(Boolean).length;
}

function mark() {
  for (const button of $("histograms").children) button.setAttribute("aria-pressed", button.dataset.score === $("score").value);
  const set = setFilters();
  $("filters-title").textContent = set ? `Filters (${set} set)` : "Filters";
}

let wantedRows = 0; // number of the newest request for rejected rows

async function rejected(append) {
  const mine = (wantedRows += 1);
  const reason = $("reason").value;
  const offset = append ? $("rejected").children.length : 0;
  let [rows, count, problem] = [[], 0, ""];
  try {
    ({ rows, total: count } = await rejectedRows(reason, offset));
  } catch (error) {
    problem = said(error);
  }
  if (mine !== wantedRows) return;
  if (!append) $("rejected").replaceChildren();
  $("rejected").append(...rows.map(rejectedRow));
  $("rejected-problem").hidden = !problem;
  $("rejected-problem").textContent = problem;
  $("more-rejected").textContent = problem ? "Try again" : "Show more rows";
  $("more-rejected").hidden = !problem && $("rejected").children.length >= count;
}

async function rejectedRows(reason, offset) {
  if (serving) {
    const answer = await fetch("rejected?" + new URLSearchParams({ reason, offset, count: 100 }));
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  }
  const some = (data.rejected || []).filter((row) => !reason || row.general === reason);
  return { rows: some.slice(offset, offset + 100), total: some.length };
}

function rejectedRow(row) {
  const span = row.start != null ? `${short(row.start)} to ${short(row.end)} s` : "";
  const scores = Object.entries(row.quality).map(([name, value]) => `${name} ${short(value)}`);
  const cells = { input: row.uri, stage: row.stage, reason: row.reason, span, scores: scores.join(", ") };
  return make("tr", {}, ...Object.entries(cells).map(([name, text]) => {
    const cell = make("td", { dir: "auto" });
    cell.dataset.name = name;
    if (scores.length > 3 && name === "scores") cell.append(make("details", {}, make("summary", { textContent: `${scores.length} scores` }), text));
    else cell.textContent = text ?? "";
    return cell;
  }));
}

