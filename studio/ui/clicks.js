// One listener on a fragment, so that its buttons keep working when it is drawn again.
// A button is a [data-action]; what it stands for goes to the server as {action, id, value}.
const act = (hit) => {
  const {action, id} = hit.dataset;
  if (action === 'open') dispatchEvent(new CustomEvent('as-look', {detail: id || ''}));
  trigger('act', {action, id: id || ''});
};
const like = (hit) => `[data-action="${hit.dataset.action}"][data-id="${CSS.escape(hit.dataset.id || '')}"]`;
const hitBy = (target) => {
  const hit = target.closest && target.closest('[data-action]');
  return hit && element.contains(hit) && hit.getAttribute('aria-disabled') !== 'true' ? hit : null;
};
const isLink = (event, hit) => hit.tagName === 'A' && (event.ctrlKey || event.metaKey || event.shiftKey || event.button > 0);
let pressed = '', done = 0, held = '';

// A list that is drawn again between press and release would swallow the click: what counts is that both hit the same button.
element.addEventListener('pointerdown', (event) => { const hit = hitBy(event.target); pressed = hit && event.button === 0 ? like(hit) : ''; });
element.addEventListener('pointercancel', () => { pressed = ''; });
element.addEventListener('pointerup', (event) => {
  const hit = hitBy(event.target);
  if (hit && like(hit) === pressed && !isLink(event, hit)) { done = Date.now(); act(hit); }
  pressed = '';
});
element.addEventListener('click', (event) => {
  const hit = hitBy(event.target);
  if (!hit || isLink(event, hit)) return;
  if (hit.tagName === 'A') event.preventDefault();
  held = like(hit);
  if (Date.now() - done > 600 || event.detail === 0) act(hit);
});
element.addEventListener('change', (event) => {
  const {choice, id} = event.target.dataset;
  if (choice) trigger('act', {action: choice, id: id || '', value: event.target.value});
});

// A drawing changes what is there in place, so that another row may come to stand under the focus, or under a tick that was set
// by hand. Whoever had the focus has it again on the same button, and ticks and choices are those of the new drawing.
element.addEventListener('focusin', (event) => { const hit = hitBy(event.target); if (hit) held = like(hit); });
element.addEventListener('focusout', (event) => { const left = held; setTimeout(() => { if (event.target.isConnected && held === left) held = ''; }); });
new MutationObserver(() => {
  const active = document.activeElement, hit = element.contains(active) && hitBy(active);
  if (held && (active === document.body || (hit && like(hit) !== held))) element.querySelector(held)?.focus({preventScroll: true});
  for (const tick of element.querySelectorAll('input.as-tick')) tick.checked = tick.hasAttribute('checked');
  for (const option of element.querySelectorAll('option[selected]')) if (option.parentElement !== active) option.parentElement.value = option.value;
}).observe(element, {childList: true, subtree: true, attributes: true, attributeFilter: ['data-id', 'data-action', 'checked', 'selected']});

// Rows with draggable="true" can be dropped on each other: before the one on whose upper half they fall, else behind it.
let dragged = '';
const rowAt = (event) => dragged && event.target.closest('li[draggable]');
const isBefore = (event, row) => event.clientY < row.getBoundingClientRect().top + row.offsetHeight / 2;
const unmark = () => element.querySelectorAll('.as-drop-before, .as-drop-after').forEach((row) => row.classList.remove('as-drop-before', 'as-drop-after'));
element.addEventListener('dragstart', (event) => {
  dragged = event.target.closest('li[draggable]')?.dataset.job || '';
  if (dragged) { event.dataTransfer.effectAllowed = 'move'; event.dataTransfer.setData('text/plain', dragged); }
});
element.addEventListener('dragover', (event) => {
  const row = rowAt(event);
  if (!row) return;
  event.preventDefault();
  unmark();
  if (row.dataset.job !== dragged) row.classList.add(isBefore(event, row) ? 'as-drop-before' : 'as-drop-after');
});
element.addEventListener('dragend', () => { unmark(); dragged = ''; });
element.addEventListener('drop', (event) => {
  const row = rowAt(event);
  if (!row || row.dataset.job === dragged) return;
  event.preventDefault();
  const next = isBefore(event, row) ? row : row.nextElementSibling;
  if (next?.dataset.job !== dragged) trigger('act', {action: 'place', id: dragged, value: next ? next.dataset.job : ''});
});
