"use strict";
// The list of images. Names of images are whatever files are called: they become text, never markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const { ids, groups, measures, values, layout } = data;
  const STAGES = ["pivot", "tuned", "stored"];
  const spriteOf = (i) => data.sprites ? data.sprites[i] : byId(`sprite-${i}`);

  byId("theme").addEventListener("click", () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = document.documentElement.style.colorScheme || (dark ? "dark" : "light");
    document.documentElement.style.colorScheme = now === "dark" ? "light" : "dark";
  });
  const grid = byId("grid");
  if (!grid) return;

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const written = (column, i) => {
    const value = values[column]?.[i], { digits, unit } = measures[column] ?? {};
    if (value === null || value === undefined) return "–";
    return (value > 1e299 ? "∞" : value.toFixed(digits)) + (unit ? ` ${unit}` : "");
  };

  // --- pictures: a sprite becomes an address when it is first shown ---------------------------------------------
  const addresses = new Map();
  const address = (i) => {
    if (!addresses.has(i)) {
      const sprite = spriteOf(i);
      let url = sprite;
      if (typeof sprite !== "string") {
        const bytes = Uint8Array.from(atob(sprite.textContent), (c) => c.charCodeAt(0));
        url = URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
      }
      addresses.set(i, `url("${url}")`);
    }
    return addresses.get(i);
  };
  const percent = (offset, size, whole) => whole > size ? `${100 * offset / (whole - size)}%` : "0%";
  const tile = (i, size, places, kind) => {
    const made = element("div", `tile ${kind}`);
    made.style.backgroundImage = places.map(() => address(i)).join(",");
    made.style.backgroundSize = `${100 * layout.width / size}% ${100 * layout.height / size}%`;
    made.style.backgroundPositionY = places.map(([, y]) => percent(y, size, layout.height)).join(",");
    if (places[0][0] !== null) {
      made.style.backgroundPositionX = places.map(([x]) => percent(x, size, layout.width)).join(",");
    }
    return made;
  };
  const shot = (i, place) => tile(i, layout.shot, [[place * layout.shot, 0]], "shot");
  const difference = (i) => tile(i, layout.shot, [[0, 0], [3 * layout.shot, 0]], "difference");
  // Without a step the tile follows the slider.
  const edit = (i, strip, step) => {
    const x = step === undefined ? null : step * layout.edit;
    return tile(i, layout.edit, [[x, layout.shot + strip * layout.edit]], step === undefined ? "edit" : "");
  };
  const shown = (picture, caption, about) => {
    const made = element("figure", "shown");
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", about);
    made.append(picture, element("figcaption", "", caption));
    return made;
  };

  // --- what is listed, and in which order -----------------------------------------------------------------------
  const select = byId("measure"), order = byId("order"), find = byId("find"), pictured = byId("pictured");
  const labels = {};
  for (const stage of [...STAGES].reverse()) {
    const group = element("optgroup");
    group.label = stage === "stored" ? "stored: tuned, as read back" : stage === "pivot" ? "pivot: before tuning" : stage;
    for (const column of Object.keys(measures).filter((name) => name.startsWith(`${stage}.`))) {
      labels[column] = `${measures[column].label}, ${stage}`;
      group.append(new Option(labels[column], column));
    }
    if (group.children.length) select.append(group);
  }
  const rest = element("optgroup");
  rest.label = "image";
  if (measures.drift) rest.append(new Option(labels.drift = "drift at w_z", "drift"));
  if (measures.seconds) rest.append(new Option(labels.seconds = "time", "seconds"));
  rest.append(new Option(labels.name = "name", "name"));
  select.append(rest);

  const names = new Intl.Collator("en", { numeric: true });
  const texts = ids.map((id, i) => `${id}\n${groups ? groups[i] : ""}`.toLowerCase());
  const items = ids.map((_, i) => {
    const item = element("li", spriteOf(i) ? "" : "plain");
    item.dataset.index = i;
    item.append(element("div", "card"));
    return item;
  });
  let listed = [];
  const list = () => {
    const column = select.value, backwards = order.getAttribute("aria-pressed") === "true" ? -1 : 1;
    const sign = (measures[column]?.higher_is_better ? 1 : -1) * backwards, wanted = find.value.trim().toLowerCase();
    listed = ids.map((_, i) => i).filter((i) => texts[i].includes(wanted) && (!pictured?.checked || spriteOf(i)));
    const compare = (a, b) => {
      if (column === "name") return backwards * names.compare(ids[a], ids[b]);
      const x = values[column][a], y = values[column][b];
      if (x === null || y === null) return (x === null) - (y === null); // not measured: last
      return sign * (x - y) || a - b;
    };
    listed.sort(compare);
    empty();
    grid.replaceChildren(...listed.map((i) => items[i]));
    const count = (n) => n.toLocaleString("en");
    byId("count").textContent = listed.length === ids.length ? `${count(ids.length)} images` : `${count(listed.length)} of ${count(ids.length)}`;
    order.textContent = column === "name" ? (backwards > 0 ? "A to Z" : "Z to A") : column === "seconds"
      ? (backwards > 0 ? "slowest first" : "fastest first") : backwards > 0 ? "worst first" : "best first";
  };

  // --- cards: filled near the window, emptied when far away -----------------------------------------------------
  const fill = (item) => {
    const i = Number(item.dataset.index), card = item.firstChild, column = select.value;
    const head = element("div", "head"), value = element("span", "value");
    if (column !== "name") value.append(`${labels[column]} `, element("b", "", written(column, i)));
    const name = element("span", "name", ids[i]);
    name.title = groups && groups[i] !== ids[i] ? `${ids[i]}, group ${groups[i]}` : ids[i];
    head.append(element("span", "rank", String(listed.indexOf(i) + 1)), name, value);
    card.replaceChildren(head);
    if (!spriteOf(i)) return;
    const measure = column.includes(".") ? column.split(".")[1] : "lpips";
    const figure = (stage) => measures[`${stage}.${measure}`] ? ` ${written(`${stage}.${measure}`, i)}` : "";
    const four = element("div", "four");
    four.append(
      shown(shot(i, 0), "target", `target ${ids[i]}`),
      shown(shot(i, 1), `pivot${figure("pivot")}`, `pivot ${ids[i]}`),
      shown(shot(i, 2), `tuned${figure("tuned")}`, `tuned ${ids[i]}`),
      shown(shot(i, 3), `stored${figure("stored")}`, `tuned, as stored ${ids[i]}`),
    );
    layout.directions.forEach((direction, d) => ["base", "tuned"].forEach((which, w) => {
      four.append(shown(edit(i, 2 * d + w), `${direction} ${which}`, `${direction}, ${which} generator, ${ids[i]}`));
    }));
    card.append(four);
    card.tabIndex = 0;
    card.setAttribute("role", "button");
  };
  const filled = new Set();
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting === filled.has(target)) continue;
      if (isIntersecting) {
        fill(target);
        filled.add(target);
      } else {
        target.firstChild.replaceChildren();
        filled.delete(target);
      }
    }
  }, { rootMargin: "700px 0px" });
  const empty = () => {
    for (const item of filled) item.firstChild.replaceChildren();
    filled.clear();
    near.disconnect(); // observing again reports every item anew
    requestAnimationFrame(() => { for (const i of listed) near.observe(items[i]); });
  };

  // --- the slider moves the edits of all rows -------------------------------------------------------------------
  const strength = byId("strength"), root = document.documentElement;
  const sigma = (step) => `${layout.strengths[step] > 0 ? "+" : ""}${Number(layout.strengths[step].toFixed(1))} σ`.replace("-", "−");
  const slide = () => {
    root.style.setProperty("--step", strength.value);
    byId("sigma").textContent = sigma(strength.value);
    strength.setAttribute("aria-valuetext", sigma(strength.value));
    if (detail.open) open(current);
  };

  // --- one image, large -----------------------------------------------------------------------------------------
  const detail = byId("detail");
  let current = 0;
  const button = (text, title, action) => {
    const made = element("button", "", text);
    made.type = "button";
    made.title = title;
    made.addEventListener("click", action);
    return made;
  };
  const step = (by) => {
    const able = listed.filter((i) => spriteOf(i)), at = able.indexOf(current) + by;
    if (able[at] !== undefined) open(able[at]);
  };
  const table = (i) => {
    const made = element("table"), body = element("tbody"), head = element("tr");
    head.append(element("th"), ...STAGES.map((stage) => element("th", "", stage)));
    const known = [...new Set(Object.keys(measures).filter((c) => c.includes(".")).map((c) => c.split(".")[1]))];
    for (const name of known) {
      const row = element("tr"), column = STAGES.map((stage) => `${stage}.${name}`);
      const { label, unit } = measures[column.find((c) => measures[c])];
      row.append(element("th", "", unit ? `${label}, ${unit}` : label));
      row.append(...column.map((c) => element("td", "", measures[c] ? written(c, i).replace(` ${unit}`, "") : "")));
      body.append(row);
    }
    for (const name of ["drift", "seconds"].filter((c) => measures[c])) {
      const row = element("tr"), cell = element("td", "", written(name, i));
      cell.colSpan = 3;
      row.append(element("th", "", labels[name]), cell);
      body.append(row);
    }
    const top = element("thead");
    top.append(head);
    made.append(top, body);
    return made;
  };
  const strips = (i) => {
    const now = Number(strength.value), made = [];
    layout.directions.forEach((direction, d) => {
      const scale = element("div", "strip");
      scale.append(element("span"), ...layout.strengths.map((_, s) => element("span", s === now ? "now" : "", sigma(s))));
      made.push(element("h4", "", `Edits along ${direction}`), scale);
      ["base", "tuned"].forEach((which, w) => {
        const strip = element("div", "strip");
        strip.append(element("span", "row", which));
        layout.strengths.forEach((_, s) => {
          const picture = edit(i, 2 * d + w, s);
          picture.classList.toggle("now", s === now);
          strip.append(picture);
        });
        made.push(strip);
      });
    });
    return made;
  };
  const open = (i) => {
    current = i;
    const bar = element("div", "bar"), title = element("h3", "", ids[i]), top = element("div", "top");
    const four = element("div", "four five");
    if (groups && groups[i] !== ids[i]) title.append(element("small", "", `group ${groups[i]}`));
    bar.append(title, button("‹", "the one before (left arrow)", () => step(-1)),
      button("›", "the next one (right arrow)", () => step(1)), button("✕", "close (Esc)", () => detail.close()));
    four.append(shown(shot(i, 0), "target", "target"), shown(shot(i, 1), "pivot", "pivot"),
      shown(shot(i, 2), "tuned", "tuned"), shown(shot(i, 3), "stored", "tuned, as stored"),
      shown(difference(i), "target less stored × 3", "difference of target and stored"));
    top.append(four, table(i));
    detail.replaceChildren(bar, top, ...strips(i));
    if (!detail.open) detail.showModal();
  };
  const openCard = (event) => {
    const item = event.target.closest("li");
    if (item && !item.classList.contains("plain")) open(Number(item.dataset.index));
  };
  grid.addEventListener("click", openCard);
  grid.addEventListener("keydown", (event) => {
    if (event.key === "Enter") openCard(event);
  });
  detail.addEventListener("click", (event) => {
    if (event.target === detail) detail.close();
  });
  detail.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowLeft" ? -1 : 1);
  });

  if (layout) {
    const last = layout.strengths.length - 1;
    strength.max = last;
    strength.value = last - 1;
    root.style.setProperty("--edit-x", percent(layout.edit, layout.edit, layout.width));
    root.style.setProperty("--count", last + 1);
    strength.addEventListener("input", slide);
    slide();
  }
  select.addEventListener("change", list);
  find.addEventListener("input", list);
  pictured?.addEventListener("change", list);
  order.addEventListener("click", () => {
    order.setAttribute("aria-pressed", String(order.getAttribute("aria-pressed") !== "true"));
    list();
  });
  list();
})();
