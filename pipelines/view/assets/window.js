// The grid holds some hundred cards of a long list: those far above leave it, and an empty place as
// high as they were stands for them until they are seen again.

const most = { cards: 480 };
let first = 0; // place in `listed` of the first card in the grid
let above = 0; // pixels of the cards that left above

function emptied() {
  [first, above] = [0, 0];
  $("above").style.height = "0";
}

const columnsOf = (all) => {
  let count = 1;
  while (count < all.length && all[count].offsetTop === all[0].offsetTop) count += 1;
  return Math.max(1, count);
};

// Of rows at the end that the grid holds no more; of the list, when there are none.
function append() {
  const held = first + $("grid").children.length;
  if (held >= listed.length) return refresh(true);
  show(listed.slice(held, held + PAGE));
  return null;
}

function show(rows) {
  const grid = $("grid");
  grid.append(...rows.map(card));
  const columns = columnsOf(grid.children);
  const many = Math.floor((grid.children.length - most.cards) / columns) * columns;
  if (many <= 0) return;
  const height = grid.children[many].offsetTop - grid.children[0].offsetTop;
  if (grid.children[many].getBoundingClientRect().top > -window.innerHeight) return; // still near
  const gone = [...grid.children].slice(0, many);
  if (gone.includes(document.activeElement)) grid.children[many].focus({ preventScroll: true });
  above += height;
  $("above").style.height = above + "px";
  for (const element of gone) forget(element);
  first += many;
  if (!grid.querySelector(".card[tabindex='0']")) roving(grid.firstElementChild);
}

function forget(element) {
  cards.unobserve(element);
  if (element.player) leave(element);
  element.remove();
}

function before() {
  if (!first) return;
  const grid = $("grid");
  const columns = columnsOf(grid.children);
  const many = Math.min(first, Math.ceil((2 * PAGE) / columns) * columns);
  const top = grid.children[0];
  grid.prepend(...listed.slice(first - many, first).map(card));
  first -= many;
  above = first ? Math.max(0, above - (top.offsetTop - grid.children[0].offsetTop)) : 0;
  $("above").style.height = above + "px";
  while (grid.children.length > most.cards + 2 * PAGE) forget(grid.lastElementChild);
  $("more").hidden = first + grid.children.length >= total;
  ahead.unobserve($("above"));
  ahead.observe($("above")); // it may still be in view
}

const ahead = new IntersectionObserver((entries) => {
  if (entries.at(-1).isIntersecting) before();
}, { rootMargin: "800px" });
ahead.observe($("above"));
