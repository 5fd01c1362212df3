"use strict";
// The media of one clip: a video (or picture) of six panels, drawn onto canvases. Every layer comes
// out of the same decoded frame, so that layers cannot run apart.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const serving = data.mode === "serve";
const PANELS = ["blended", "foreground", "alpha", "background", "difference", "recomposed"];
const SHOWN = ["blended", "foreground", "alpha", "background"];
const BACKINGS = ["checkerboard", "black", "white", "green", "grey", "colour without alpha"];
const COLOURS = { black: [0, 0, 0], white: [255, 255, 255], green: [0, 177, 64], grey: [127, 127, 127] };

const state = {
  playing: !matchMedia("(prefers-reduced-motion: reduce)").matches,
  layers: "all",
  backing: "checkerboard",
};
const players = new Set();
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function bytesOf(index) {
  const element = $("media-" + index);
  if (!element) return null;
  const binary = atob(element.textContent);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function previewOf(clip, large, signal) {
  if (!serving) return { about: clip.preview, blob: new Blob([bytesOf(clip.place)], { type: clip.preview.mime }) };
  const answer = await fetch(`preview/${clip.index}?height=${large ? 288 : 144}`, { signal });
  if (!answer.ok) throw new Error(await answer.text());
  return { about: JSON.parse(answer.headers.get("X-Preview")), blob: await answer.blob() };
}

class Player {
  constructor(clip, large, onError) {
    this.clip = clip;
    this.targets = []; // [canvas, panel names]
    this.time = -1;
    this.abort = new AbortController();
    players.add(this);
    this.ready = this.load(large).catch((error) => {
      if (!this.stopped) onError(String(error.message || error));
    });
  }

  async load(large) {
    if (this.clip.problem) throw new Error(this.clip.problem);
    const { about, blob } = await previewOf(this.clip, large, this.abort.signal);
    if (this.stopped) return;
    this.about = about;
    this.url = URL.createObjectURL(blob);
    this.still = about.mime.startsWith("image/");
    this.media = this.still
      ? Object.assign(new Image(), { src: this.url })
      : make("video", { muted: true, loop: true, playsInline: true, preload: "auto", src: this.url });
    if (this.still) await this.media.decode();
    else await new Promise((done, failed) => {
      this.media.onloadeddata = done;
      this.media.onerror = () => failed(new Error("the preview cannot be played"));
    });
    this.play();
  }

  play() {
    if (!this.media || this.still || this.stopped) return;
    if (state.playing) this.media.play().catch(() => {});
    else this.media.pause();
  }

  seek(frame) {
    const last = this.about.frames - 1;
    const wrapped = (frame + last + 1) % (last + 1);
    if (!this.still) this.media.currentTime = (wrapped + 0.5) / this.about.fps;
  }

  frame() {
    return this.still ? 0 : Math.min(this.about.frames - 1, Math.floor(this.media.currentTime * this.about.fps));
  }

  // One snapshot for all panels: a video that plays may move on between two drawImage calls.
  draw(force) {
    if (!this.media || !this.about) return;
    const { media } = this;
    const ready = this.still ? media.complete && media.naturalWidth > 0 : media.readyState >= 2; // not while it seeks
    if (!ready && !(force && this.shot)) return;
    const time = this.still ? 0 : media.currentTime;
    if (time === this.time && !force) return;
    this.time = time;
    const [height, width] = this.about.cell;
    this.shot ??= make("canvas", { width: 3 * width, height: 2 * height })
      .getContext("2d", { willReadFrequently: true });
    if (ready) this.shot.drawImage(media, 0, 0);
    for (const [canvas, panels] of this.targets) drawPanels(this, canvas, panels);
  }

  stop() {
    this.stopped = true;
    this.abort.abort();
    players.delete(this);
    if (this.media && !this.still) { this.media.pause(); this.media.removeAttribute("src"); this.media.load(); }
    if (this.url) URL.revokeObjectURL(this.url);
    this.media = null;
  }
}

function drawPanels(player, canvas, names) {
  const [height, width] = player.about.panel;
  const columns = names.length > 1 ? 2 : 1;
  const size = [columns * width, Math.ceil(names.length / columns) * height];
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  const context = canvas.getContext("2d");
  names.forEach((name, place) => {
    const x = (place % columns) * width;
    const y = Math.floor(place / columns) * height;
    if (name === "foreground" && state.backing !== BACKINGS[5] && !player.clip.flat) context.putImageData(overBacking(player), x, y);
    else context.drawImage(player.shot.canvas, ...corner(player, name), width, height, x, y, width, height);
  });
}

function corner(player, name) {
  const place = PANELS.indexOf(name);
  return [(place % 3) * player.about.cell[1], Math.floor(place / 3) * player.about.cell[0]];
}

function pixels(player, name) {
  const [height, width] = player.about.panel;
  return player.shot.getImageData(...corner(player, name), width, height);
}

function overBacking(player) {
  const image = pixels(player, "foreground");
  const alpha = pixels(player, "alpha").data;
  const out = image.data;
  const colour = COLOURS[state.backing];
  for (let i = 0; i < out.length; i += 4) {
    const a = Math.min(1, Math.max(0, (alpha[i] - 3) / 249)); // the coded ends of the range
    const pixel = i >> 2;
    const cell = ((pixel % image.width) >> 3) + (Math.floor(pixel / image.width) >> 3);
    for (let c = 0; c < 3; c += 1) {
      const behind = colour ? colour[c] : cell & 1 ? 190 : 235;
      out[i + c] = out[i + c] * a + behind * (1 - a);
    }
  }
  return image;
}

function tick() {
  for (const player of players) player.draw(false);
  if (opened?.player.media) showFrame(opened.player);
  requestAnimationFrame(tick);
}
