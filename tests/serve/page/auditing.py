"""What a page owes to those who do not see it, or not well: scripts that run in it, and give what is wrong."""

from __future__ import annotations

# Names, labels, identities and roles; an empty list where all is well.
AUDIT = """() => {
  const wrong = [];
  const visible = (node) => node.checkVisibility({ visibilityProperty: true });
  const named = (node) => {
    const by = node.getAttribute('aria-labelledby');
    const labels = [...(node.labels ?? [])].map((label) => label.textContent);
    const pointed = by ? by.split(' ').map((id) => document.getElementById(id)?.textContent) : [];
    const own = /^(BUTTON|A|SUMMARY)$/.test(node.tagName) ? [node.textContent] : [];
    return [node.getAttribute('aria-label'), ...pointed, ...labels, ...own].some((text) => text?.trim());
  };
  const ids = [...document.querySelectorAll('[id]')].map(({ id }) => id);
  for (const id of ids) if (ids.filter((each) => each === id).length > 1) wrong.push(`two have the id ${id}`);
  const roles = ['tab', 'tabpanel', 'meter', 'img', 'application', 'group'].map((role) => `[role=${role}]`);
  const controls = ['button', 'a', 'input', 'textarea', 'select', 'summary', 'dialog', '[tabindex]'];
  for (const node of document.querySelectorAll([...controls, ...roles].join(', '))) {
    if (node.tagName === 'PRE' || !visible(node)) continue;
    if (!named(node)) wrong.push(`no name: ${node.outerHTML.slice(0, 80)}`);
  }
  for (const name of ['aria-controls', 'aria-labelledby', 'aria-describedby', 'for']) {
    for (const node of document.querySelectorAll(`[${name}]`)) {
      for (const id of node.getAttribute(name).split(' ')) {
        if (!document.getElementById(id)) wrong.push(`${name} points to ${id}, which is not there`);
      }
    }
  }
  for (const node of document.querySelectorAll('img:not([alt])')) wrong.push(`no alt: ${node.outerHTML}`);
  for (const { tabIndex } of document.querySelectorAll('[tabindex]')) if (tabIndex > 0) wrong.push('an own order');
  for (const node of document.querySelectorAll('th:not([scope])')) wrong.push(`no scope: ${node.textContent}`);
  const selected = document.querySelectorAll('[role=tab][aria-selected=true]').length;
  if (selected !== 1) wrong.push(`${selected} tabs are selected`);
  if (document.documentElement.lang !== 'en') wrong.push('no language');
  if (document.querySelectorAll('h1').length !== 1 || document.querySelectorAll('main').length !== 1) {
    wrong.push('not one heading and one main part');
  }
  return wrong;
}"""

# [contrast, text] of each text that is seen, against what is behind it: WCAG's ratio from 1 to 21.
CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [red, green, blue] = channels(colour).map((byte) => {
      const part = byte / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if ((channels(colour)[3] ?? 1) > 0) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const ratio = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility({ visibilityProperty: true })) continue;
    if (node.closest('button:disabled, .visually-hidden, noscript')) continue;
    found.push([ratio(getComputedStyle(node).color, behind(node)), walker.currentNode.data.trim().slice(0, 40)]);
  }
  for (const field of document.querySelectorAll('input, textarea')) {
    if (!field.checkVisibility()) continue;
    found.push([ratio(getComputedStyle(field, '::placeholder').color, behind(field)), `placeholder of ${field.id}`]);
  }
  return found;
}"""
