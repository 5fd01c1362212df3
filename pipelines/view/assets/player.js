"use strict";
// The media of one clip: a video (or picture) of six panels and more where a foreground is made of
// several objects, drawn onto canvases. Every layer comes out of the same decoded frame, so that
// layers cannot run apart.

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
const MOST_VIDEOS = 60; // Chromium makes no more than 75 in a page

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

function said(error) {
  const lost = serving && error instanceof TypeError; // what fetch throws when nobody answers
  return lost ? "the server does not answer: is `layerflow view --serve` still running?" : String(error.message || error);
}

async function previewOf(clip, large, signal) {
  if (!serving) return { about: clip.preview, blob: new Blob([bytesOf(clip.place)], { type: clip.preview.mime }) };
  const answer = await fetch(`preview/${clip.index}?height=${large ? 288 : 144}`, { signal });
  if (!answer.ok) throw new Error(await answer.text());
  return { about: JSON.parse(answer.headers.get("X-Preview")), blob: await answer.blob() };
}

// Before a video is made: of those in the grid, the one that plays longest keeps its picture only.
function makeRoom() {
  const videos = [...players].filter((player) => player.media && !player.still);
  if (videos.length < MOST_VIDEOS) return;
  const small = videos.filter((player) => !player.large);
  (small.find((player) => player.shot) ?? small[0])?.freeze();
}

class Player {
  constructor(clip, large, onError) {
    Object.assign(this, { clip, large, targets: [] }); // targets: [canvas, panel names]
    this.time = -1; // of the picture that was drawn
    this.abort = new AbortController();
    players.add(this);
    this.ready = this.load().catch((error) => {
      if (this.stopped) return;
      this.problem = said(error);
      onError(this.problem);
    });
  }

  async load() {
    if (this.clip.problem) throw new Error(this.clip.problem);
    const { about, blob } = await previewOf(this.clip, this.large, this.abort.signal);
    if (this.stopped) return;
    Object.assign(this, { about, blob, still: about.mime.startsWith("image/") });
    await this.begin();
  }

  async begin() {
    if (!this.still) makeRoom();
    this.url = URL.createObjectURL(this.blob);
    const media = this.still
      ? Object.assign(new Image(), { src: this.url })
      : make("video", { muted: true, loop: true, playsInline: true, preload: "auto", src: this.url });
    this.media = media;
    if (this.still) await media.decode();
    else await new Promise((done, failed) => {
      media.onloadeddata = media.onemptied = done; // emptied: it was stopped
      media.onerror = () => failed(new Error("the preview cannot be played"));
    });
    if (this.media !== media) return;
    this.told = !this.still && "requestVideoFrameCallback" in media;
    if (this.told) this.listen(media);
    this.fresh = true;
    this.play();
  }

  listen(media) {
    media.requestVideoFrameCallback((_, { mediaTime }) => {
      if (this.media !== media) return;
      Object.assign(this, { fresh: true, picture: mediaTime });
      this.listen(media);
    });
  }

  play() {
    if (!this.media || this.still) return;
    if (state.playing) this.media.play().catch(() => {}); // stopped before it began
    else this.media.pause();
  }

  seek(frame) {
    if (!this.media || this.still) return;
    const { frames, fps } = this.about;
    this.media.currentTime = (((frame % frames) + frames) % frames + 0.5) / fps;
  }

  // The frame that was asked for last, or that plays; the one in the picture may be one behind.
  frame(time = this.media?.currentTime ?? 0) {
    return this.still ? 0 : Math.max(0, Math.min(this.about.frames - 1, Math.floor(time * this.about.fps + 0.01)));
  }

  // One snapshot for all panels: a video that plays may move on between two drawImage calls.
  draw(force) {
    if (!this.about || !(this.media || this.shot)) return;
    const { media } = this;
    const ready = media && (this.still ? media.complete && media.naturalWidth > 0 : media.readyState >= 2 && !media.seeking);
    if (!ready && !(force && this.shot)) return;
    const time = ready && !this.still ? media.currentTime : this.time;
    const due = this.fresh || (this.told ? Math.abs(time - this.time) > 0.4 : time !== this.time);
    if (!due && !force) return;
    if (ready) {
      this.time = this.told && this.fresh ? this.picture ?? time : time;
      this.fresh = false;
      const [height, width] = this.about.cell;
      const rows = Math.ceil(this.about.panels.length / 3);
      this.shot ??= make("canvas", { width: 3 * width, height: rows * height })
        .getContext("2d", { willReadFrequently: true });
      this.shot.drawImage(media, 0, 0);
    }
    for (const [canvas, panels] of this.targets) drawPanels(this, canvas, panels);
  }

  // Lets the video go; the picture stays.
  freeze() {
    const { media, url } = this;
    this.media = null;
    if (media && !this.still) { media.pause(); media.removeAttribute("src"); media.load(); }
    if (url) URL.revokeObjectURL(url);
    this.url = null;
  }

  stop() {
    this.stopped = true;
    this.abort.abort();
    players.delete(this);
    this.freeze();
    Object.assign(this, { shot: null, blob: null, targets: [] });
    const cold = [...players].find((player) => player.blob && !player.media);
    cold?.begin().catch((error) => { cold.problem = said(error); });
  }
}

function drawPanels(player, canvas, names) {
  const [height, width] = player.about.panel;
  canvas.style.aspectRatio = `${width} / ${height}`;
  const columns = names.length > 1 ? 2 : 1;
  const size = [columns * width, Math.ceil(names.length / columns) * height];
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  const context = canvas.getContext("2d");
  names.forEach((name, place) => {
    const x = (place % columns) * width;
    const y = Math.floor(place / columns) * height;
    const matte = name === "foreground" ? "alpha" : "alpha of " + name;
    const backed = player.about.panels.includes(matte) && state.backing !== BACKINGS[5] && !player.clip.flat;
    if (backed) context.putImageData(overBacking(player, name, matte), x, y);
    else context.drawImage(player.shot.canvas, ...corner(player, name), width, height, x, y, width, height);
  });
}

function corner(player, name) {
  const place = player.about.panels.indexOf(name);
  return [(place % 3) * player.about.cell[1], Math.floor(place / 3) * player.about.cell[0]];
}

function pixels(player, name) {
  const [height, width] = player.about.panel;
  return player.shot.getImageData(...corner(player, name), width, height);
}

function overBacking(player, name, matte) {
  const image = pixels(player, name);
  const alpha = pixels(player, matte).data;
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

// So many milliseconds of a frame go to pictures, so that the page scrolls whatever plays; players
// whose turn does not come are first in the next frame.
const BUDGET = 12;
let turn = 0;

function tick() {
  requestAnimationFrame(tick); // first: whatever one clip does, the others go on
  const all = [...players];
  const until = performance.now() + BUDGET;
  opened?.player.draw(false);
  let drawn = 0;
  while (drawn < all.length && performance.now() < until) {
    all[(turn + drawn) % all.length].draw(false);
    drawn += 1;
  }
  turn = all.length ? (turn + drawn) % all.length : 0;
  if (opened?.player.media) showFrame(opened.player);
}
