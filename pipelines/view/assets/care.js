// What a person decides about clips: flags and the file of their ids, why a gate takes a clip or not,
// and the clips of one source. Text from rows is only ever set as text.

const STORE = "layerflow flags of " + data.name;
const PRESETS = Object.keys(data.limits ?? {});
const flagged = new Set(remembered());

function remembered() {
  try { return JSON.parse(localStorage.getItem(STORE) ?? "[]"); } catch { return []; } // it may be forbidden
}

function flag(clip) {
  if (!clip) return;
  if (!flagged.delete(clip.id)) flagged.add(clip.id);
  flags();
}

function flags() {
  try { localStorage.setItem(STORE, JSON.stringify([...flagged])); } catch { /* the page has them */ }
  for (const element of $("grid").children) mine(element);
  $("save-flags").textContent = `Save ${flagged.size.toLocaleString("en")} flagged id${flagged.size === 1 ? "" : "s"}`;
  $("save-flags").hidden = $("clear-flags").hidden = !flagged.size;
  $("flag").setAttribute("aria-pressed", Boolean(opened && flagged.has(opened.clip.id)));
}

function mine(element) {
  element.classList.toggle("flagged", flagged.has(element.clip.id));
}

function saveFlags() {
  const text = [...flagged].map((id) => id + "\n").join("");
  const url = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  make("a", { href: url, download: `${data.name.replace(/[^\w.-]/g, "_")}-flagged.txt` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// Every score that a preset of the gate judges, with its limits; a score that is not known is not
// judged.
function judged(clip, preset) {
  return Object.entries(data.limits[preset]).map(([name, [low, high]]) => {
    const value = clip.scores[name];
    const passes = value === undefined ? null : (low === null || value >= low) && (high === null || value <= high);
    return { name, value, low, high, passes };
  });
}

function why(clip) {
  const all = judged(clip, $("preset").value);
  const failed = all.filter((one) => one.passes === false);
  const known = all.filter((one) => one.passes !== null);
  const said = failed.length ? `${failed.length} of ${known.length} known scores fail` : known.length ? `all ${known.length} known scores pass` : "no score is known";
  $("verdict").textContent = said;
  $("verdict").classList.toggle("failed", failed.length > 0);
  const order = [...failed, ...all.filter((one) => one.passes), ...all.filter((one) => one.passes === null)];
  $("why").replaceChildren(...order.map(({ name, value, low, high, passes }) => {
    const limits = low === null ? `at most ${short(high)}` : high === null ? `at least ${short(low)}` : `${short(low)} to ${short(high)}`;
    const texts = [name, value === undefined ? "-" : short(value), limits, passes === null ? "not known" : passes ? "passes" : "fails"];
    const row = make("tr", { title: data.histograms[name]?.says ?? "" }, ...texts.map((textContent) => make("td", { textContent })));
    row.classList.toggle("failed", passes === false);
    return row;
  }));
}

// --- one source -----------------------------------------------------------------------------

function setSource(source) {
  if (source && ![...$("source").options].some((option) => option.value === source)) {
    $("source").append(make("option", { value: source, textContent: source.slice(-80) }));
  }
  $("source").value = source;
}

// The address names the source, so that its page can be linked to and opened again.
function nameSource() {
  const source = $("source").value;
  history.replaceState(null, "", source ? "#source=" + encodeURIComponent(source) : location.pathname + location.search);
}

function fromAddress() {
  const found = location.hash.match(/^#source=(.*)$/);
  try { setSource(found ? decodeURIComponent(found[1]) : ""); } catch { setSource(""); }
}

function setUpCare() {
  const sources = Object.entries(data.sources ?? {});
  options($("source"), [["", "all"], ...sources.map(([name, count]) => [name, `${name.slice(-80)} (${count})`])]);
  fromAddress();
  window.onhashchange = () => { fromAddress(); mark(); refresh(false); };
  options($("preset"), PRESETS.map((name) => [name, name]));
  if (PRESETS.includes("standard")) $("preset").value = "standard";
  $("preset").onchange = () => { if (opened) why(opened.clip); };
  $("why-box").hidden = !PRESETS.length;
  $("save-flags").onclick = saveFlags;
  $("clear-flags").onclick = () => { flagged.clear(); flags(); };
  $("flag").onclick = () => flag(opened?.clip);
  $("of-source").onclick = () => {
    setSource(opened.clip.source);
    $("detail").close();
    nameSource();
    mark();
    refresh(false);
  };
  flags();
}
