/**
 * `Symbol.dispose` and `Symbol.asyncDispose` where they are missing: Node.js before 24 has them in its main realm only, not
 * in vm contexts, where some test runners and plugin hosts load this library. Imported before all else: without them, methods
 * of classes would get the name "undefined".
 */
for (const name of ['dispose', 'asyncDispose'] as const)
  // Not there, whatever the types say.
  if (!(name in Symbol)) Reflect.defineProperty(Symbol, name, { value: Symbol(`Symbol.${name}`) });

export {};
