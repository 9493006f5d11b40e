/// <reference path="./millgate-stage-context.d.ts" />
/// <reference path="./millgate-stage-types.d.ts" />
declare module 'millgate:stage/compliance@0.1.0' {
  export type StageError = import('millgate:stage/types@0.1.0').StageError;
  export type Span = import('millgate:stage/types@0.1.0').Span;
  export type Finding = import('millgate:stage/types@0.1.0').Finding;
  export type Context = import('millgate:stage/context@0.1.0').Context;
  export interface Edit {
    span: Span,
    replacement: string,
  }
  export interface Refusal {
    code: string,
    message: string,
  }
  export interface Regeneration {
    keep: number,
    ban: Array<string>,
    reason: Refusal,
  }
  export type Decision = DecisionPass | DecisionBlock | DecisionRegenerate;
  export interface DecisionPass {
    tag: 'pass',
  }
  export interface DecisionBlock {
    tag: 'block',
    val: Refusal,
  }
  export interface DecisionRegenerate {
    tag: 'regenerate',
    val: Regeneration,
  }
  export interface Verdict {
    settled: number,
    edits: Array<Edit>,
    findings: Array<Finding>,
    decision: Decision,
  }
  
  export class Inspection {
    constructor(ctx: Context)
    push(chunks: Array<string>): Verdict;
    finish(): Verdict;
  }
}
