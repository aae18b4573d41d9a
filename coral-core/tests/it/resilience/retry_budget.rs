use coral_core::resilience::{RetryBudget, RetryBudgetPolicy};
use coral_core::{ChatResponse, ErrorKind, MemoryJournal, ModelFault, Runner};

use super::{Asks, ask, fault};
use crate::support::FnModel;

#[tokio::test(start_paused = true)]
async fn an_empty_budget_makes_failures_final() {
    let budget = RetryBudget::new(RetryBudgetPolicy { most: 4, ..Default::default() });
    let model = FnModel::new(|_, _| Err(fault(ModelFault::Overloaded)));
    let requests = model.requests.clone();
    let runner = Runner::builder().journal(MemoryJournal::new()).model(budget.wrap(model)).build();
    for _ in 0..10 {
        let run = runner.start(&Asks, String::new()).await.unwrap();
        run.output().await.unwrap_err();
    }
    // The first run has its four tries and takes four; each of the others has one.
    assert_eq!(requests.lock().unwrap().len(), 4 + 9);
    assert_eq!(budget.repeats_left(), 0);
    let run = runner.start(&Asks, String::new()).await.unwrap();
    let error = run.output().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Budget { .. }), "{error}");
    assert!(!error.is_transient());
    assert!(error.to_string().contains("model `test` failed (overloaded): planned"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn successes_pay_for_repeats_up_to_a_bound() {
    let budget = RetryBudget::new(RetryBudgetPolicy { percent: 20, most: 2 });
    let model = budget.wrap(FnModel::new(|count, _| match count {
        1..=2 => Err(fault(ModelFault::Connect)),
        _ => Ok(ChatResponse::text("test", "")),
    }));
    for _ in 0..2 {
        ask(&model).await.unwrap_err();
    }
    assert_eq!(budget.repeats_left(), 0);
    for expected in [0, 0, 0, 0, 1] {
        ask(&model).await.unwrap();
        assert_eq!(budget.repeats_left(), expected);
    }
    for _ in 0..100 {
        ask(&model).await.unwrap();
    }
    assert_eq!(budget.repeats_left(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_repeated_costs_nothing() {
    let budget = RetryBudget::new(RetryBudgetPolicy::default());
    let model = budget.wrap(FnModel::new(|_, _| Err(fault(ModelFault::InvalidRequest))));
    ask(&model).await.unwrap_err();
    assert_eq!(budget.repeats_left(), 50);
}
